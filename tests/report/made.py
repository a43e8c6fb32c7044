"""Made-up runs, finished or not: trials in memory, and folders as a run writes them."""

from okdph_jax.report.runs import Trial
from okdph_jax.run import Run
from okdph_jax.saved_config import ADDED
from okdph_jax.training import logbook

READERS = ("student_0", "student_1", "hybrid", "ensemble")


def config(method, seed, *, network="resnet8", draw=42, epochs=10, validation=False, **options):
  data = {"name": "digits", "fraction": 1.0, "validation": 100 * validation, "seed": draw}
  return ADDED | {
    "seed": seed,
    "epochs": epochs,
    "milestones": [150, 225],
    "network": network,
    "views": ["crop(1)"],
    "data": data,
    "method": {"name": method, "students": 2, "omega": 0.8} | options,
    "wrappers": [],
  }


def lines(last, *, epochs=10, done=None, validation=False):
  """An evaluation per epoch: accuracies that rise to `last`, and a rate that falls at half."""
  found = []
  for epoch in range(1, (epochs if done is None else done) + 1):
    accuracy = last * (0.5 + 0.5 * epoch / epochs)
    readers = {name: accuracy - 0.01 * (name == "student_1") for name in READERS}
    splits = {"test": readers} | ({"validation": readers} if validation else {})
    found.append(
      {
        "step": 4 * epoch,
        "epoch": float(epoch),
        "learning_rate": 0.1 if epoch <= epochs / 2 else 0.01,
        "losses": {"loss": 2 / epoch, "accuracy": accuracy},
        "accuracy": splits,
        "cross_entropy": {name: {r: 1 - x for r, x in s.items()} for name, s in splits.items()},
        "seconds": 6.0 * epoch,
        "images_per_second": 100.0,
      }
    )
  return found


def result(options, evaluations):
  return logbook.result(
    evaluations,
    options,
    singles=READERS[:3],
    students=2,
    parameters=2000,
    parameters_deployed=1000,
    flops_per_image=1e6,
    version="0.1.0",
  )


def trial(method, seed, *, last=0.5, **options):
  """A finished run in memory."""
  made = config(method, seed, **options)
  return Trial(f"{method}-{seed}", made, result(made, lines(last)), None)


def folder(path, method, seed, *, last=0.5, finished=True, done=None, training=0, **options):
  """A run directory, with `training` lines of single steps; the `Run`."""
  run, validation = Run(path), options.get("validation", False)
  made = config(method, seed, **options)
  path.mkdir(parents=True)
  command = f"okdph train --config=digits:{method} --config.seed={seed}"
  fingerprint = {"train": {"images": 1000, "digest": "0"}}
  run.write_record(made, {"python": "3.11"}, command=command, fingerprint=fingerprint)
  evaluations = lines(last, done=done, validation=validation)
  for line in evaluations:
    run.append(line)
  run.append_training(
    {"step": step, "epoch": step / 4, "losses": {"loss": 2 / step}}
    for step in range(1, training + 1)
  )
  if finished:
    run.write_result(result(made, evaluations))
  return run
