"""`fit`: trains the run that a config describes, in a run directory."""

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tabulate import tabulate

from okdph_jax import data
from okdph_jax.errors import one_line
from okdph_jax.experiment.build import Experiment, build, check_views, configure_jax
from okdph_jax.experiment.config import check, flat, load_config, method_options
from okdph_jax.experiment.summary import environment, parameters, resolve, summary
from okdph_jax.run import Result, Run
from okdph_jax.runtime import distributed, host
from okdph_jax.runtime.signals import (
  Interrupted,
  interruptible,
  stop_before_the_first_step,
)
from okdph_jax.saved_config import LAST_BITS, USERS_OWN, completed, differing
from okdph_jax.training import logbook
from okdph_jax.training.loop import Diverged, Job, train


def fit(
  config: ConfigDict | str, workdir: str | os.PathLike[str], *, command: str | None = None
) -> Result:
  """Trains networks as `config` says, or resumes the run in `workdir`; returns the `Result`.

  config: a ConfigDict, a file "configs/cifar10.py:okdph,resnet32", or a name
    "cifar10:okdph,resnet32". With several generations, the result is that of the last one.
  command: the command line, recorded in config.json for reports.

      >>> result = fit(config, workdir)
      software ...
      >>> result.best_single["accuracy"] > 0
      True

  Raises:
    ValueError, OSError: in one line, if the run cannot be started.
    FloatingPointError: the loss became NaN or infinite.
    Interrupted: SIGTERM or SIGINT stopped the run; the same call resumes it.
  """
  with prepared([config]) as ([config], interrupted):
    for one, folder in generations(config, workdir):
      about = {"replicate_seed": config.seed} if config.generations > 1 else {}
      [result] = run_together([one], [Run(folder)], interrupted, command, about)
  return result


def fit_seeds(
  configs: Sequence[ConfigDict | str],
  workdirs: Sequence[str | os.PathLike[str]],
  *,
  command: str | None = None,
) -> list[Result]:
  """`fit` for several runs that differ only in their seeds, trained as one program.

  Each run has its own directory, with the same files and, up to rounding, the same results as
  if it were trained alone. Each can be resumed alone, or together with others at the same step;
  finished runs are skipped. This is faster on accelerators if the kernels of one run are short;
  on a CPU it takes as long as one run after another.

  configs: equal except for `seed`, and `data.seed` if it draws equally many images.

      seeds = range(42, 47)
      configs = [load_config("cifar10:okdph,resnet32", [("seed", str(s))]) for s in seeds]
      results = fit_seeds(configs, [f"runs/okdph-seed{s}" for s in seeds])

  Raises:
    ValueError, OSError, Interrupted: as `fit`.
    FloatingPointError: as `fit`; it names the runs.
  """
  with prepared(configs) as (several, interrupted):
    check_alike(several, workdirs)
    return run_together(several, [Run(folder) for folder in workdirs], interrupted, command, {})


@contextlib.contextmanager
def prepared(
  configs: Sequence[ConfigDict | str],
) -> Iterator[tuple[list[ConfigDict], Callable[[], bool]]]:
  """Prepares this process for training: (checked configs, `interrupted`)."""
  with interruptible() as interrupted:
    loaded = [load_config(config) for config in configs]
    for config in loaded:
      check(config)
    configure_jax(loaded[0])
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
      raise ValueError(f"this is one of {jax.process_count()} processes of a pod: add --pod")
    with distributed.only_leader_prints():
      stop_before_the_first_step(interrupted)
      yield loaded, interrupted


def check_alike(
  configs: Sequence[ConfigDict], workdirs: Sequence[str | os.PathLike[str]]
) -> None:
  """Raises ValueError, in one line, for runs that cannot be trained as one program."""
  first = configs[0]
  if len(configs) != len({os.path.abspath(folder) for folder in workdirs}):
    raise ValueError(
      f"{len(configs)} runs need {len(configs)} different directories, not {workdirs}"
    )
  for config in configs:
    for name, value in flat(config).items():
      if name not in ("seed", "data.seed") and value != flat(first).get(name):
        raise ValueError(
          f"runs that are trained together may differ only in their seeds; config.{name} is "
          f"{flat(first).get(name)} and {value}: train them one by one"
        )
  for name in ("generations", "student_groups"):
    if first[name] > 1:
      raise ValueError(
        f"config.{name}={first[name]} does not work with several seeds in one program: train "
        "the seeds one by one"
      )
  if jax.process_count() > 1:
    raise ValueError("a pod trains one run at a time: train the seeds one by one")


def generations(
  config: ConfigDict, workdir: str | os.PathLike[str]
) -> Iterator[tuple[ConfigDict, str | os.PathLike[str]]]:
  """Yields (config, folder) of each run: one, or one per generation of self-distillation.

  Born-Again Networks (Furlanello et al., ICML 2018, arXiv:1805.04770): a network of generation
  k - 1 teaches generation k, in workdir/generation_k. The first one learns from
  `config.teacher`, or without it from the labels alone.
  """
  if config.generations == 1:
    yield config, workdir
    return
  for k in range(config.generations):
    one = config.copy_and_resolve_references()
    one.generations, one.seed = 1, generation_seed(config.seed, k)
    if k:
      one.teacher = os.path.join(workdir, f"generation_{k - 1}")
      one.teacher_network = ""  # that of the first teacher
    elif not config.teacher:
      one.method = ConfigDict({"name": "base"} | method_options("base") | {"students": 1})
    yield one, os.path.join(workdir, f"generation_{k}")


def generation_seed(seed: int, k: int) -> int:
  """The seed of generation k: `seed` for the first, then a hash of both.

  With seed + k, the generations of neighbouring seeds would share initial networks.
  """
  return seed if k == 0 else int(np.random.SeedSequence((seed, k)).generate_state(1)[0])


def run_together(
  configs: Sequence[ConfigDict],
  runs: Sequence[Run],
  interrupted: Callable[[], bool],
  command: str | None,
  about: Mapping[str, Any],
) -> list[Result]:
  """Trains one run, or several as one program; the `Result` of each.

  They are resumed from their latest checkpoints; finished runs are skipped.

  about: further entries of config.json and result.json.
  """
  left = []
  for config, run in zip(configs, runs, strict=True):
    if finished := already_finished(config, run):
      say_finished(finished)
    else:
      left.append((config, run))
  if left:
    train_together(left, interrupted, command, about)
  results = [run.finished for run in runs]
  assert all(results)  # they have just been written
  return [result for result in results if result]


def train_together(
  asked: Sequence[tuple[ConfigDict, Run]],
  interrupted: Callable[[], bool],
  command: str | None,
  about: Mapping[str, Any],
) -> None:
  """Trains unfinished runs and writes their results."""
  with contextlib.ExitStack() as locks:
    for _, run in asked:
      locks.enter_context(run.locked())
    with distributed.leader_first():  # it may have to prepare them
      jobs = with_data(asked)
    stop_before_the_first_step(interrupted)
    config, dataset = jobs[0].config, jobs[0].dataset
    check_devices(config, len(dataset.train))
    planned = planned_together(asked)
    extended = {"extended_from_epochs": planned} if planned else {}
    experiment = build(config, dataset, planned)
    here = environment(len(jobs))
    work = [(job, record_of(job, experiment, planned, here)) for job in jobs]
    if not planned:  # of finished runs only the place of the images is another
      for finished in filter(None, (job.run.finished for job in jobs)):
        say_finished(finished)
      work = [(job, record) for job, record in work if not job.run.result]
    if not work:
      return
    jobs = [job for job, _ in work]
    for job, record in work:
      job.run.write_record(
        environment=here,
        command=command or (job.run.record or {}).get("command"),
        class_names=dataset.class_names,
        streamed=dataset.test.streamed,
        **record,
        **extended,
        **about,
      )
      job.run.reopen()
    print(summary(config, dataset, experiment), flush=True)
    if len(jobs) > 1:
      folders = ", ".join(str(job.run.path) for job in jobs)
      print(f"{len(jobs)} runs as one program: {folders}", flush=True)
    if planned:
      print(f"extended from {planned} to {config.epochs} epochs, at the last learning rate")
    with failures_noted([job.run for job in jobs]):
      flops = train(jobs, experiment, interrupted, extended)
    trained, deployed = parameters(experiment, dataset)
    results = [
      logbook.result(
        job.run.lines,
        record["config"],
        singles=experiment.single,
        students=config.method.get("students", 1),
        parameters=trained,
        parameters_deployed=deployed,
        flops_per_image=flops,
        version=importlib.metadata.version("okdph_jax"),
        fingerprint=record["fingerprint"],
        **extended,
        **about,
      )
      for job, record in work
    ]
    with distributed.leader_first():  # another generation reads it
      for job, result in zip(jobs, results, strict=True):
        job.run.write_result(result)
  for job, result in zip(jobs, results, strict=True):
    print(f"{closing(result)}\nthe run is in {job.run.path}")


def with_data(asked: Sequence[tuple[ConfigDict, Run]]) -> list[Job]:
  """The runs with their datasets. Runs with equal options share one.

  Raises:
    ValueError: in one line, if the datasets differ in size.
  """
  loaded: dict[str, data.Dataset] = {}
  for config, _ in asked:
    if (named := repr(config.data.to_dict())) not in loaded:
      loaded[named] = data.load(config)
  first, *others = loaded.values()
  for other in others:
    if len(first.train) != len(other.train):
      raise ValueError(
        f"the data seeds draw {len(first.train)} and {len(other.train)} training images: train "
        "the seeds one by one"
      )
  return [Job(config, run, loaded[repr(config.data.to_dict())]) for config, run in asked]


def planned_together(asked: Sequence[tuple[ConfigDict, Run]]) -> int | None:
  """The `planned_epochs` of all runs; ValueError if they differ."""
  planned = {planned_epochs(config, run) for config, run in asked}
  if len(planned) > 1:
    raise ValueError(
      "runs that are trained together must be extended from the same number of epochs, not "
      f"{', '.join(map(str, planned))}: train them one by one"
    )
  return planned.pop()


def record_of(
  job: Job, experiment: Experiment, planned: int | None, here: dict[str, Any]
) -> dict[str, Any]:
  """The run's own entries of config.json; ValueError if its folder has another run."""
  check_views(job.config, experiment.method)
  resolved = resolve(job.config, job.run.path, job.dataset)
  same_run(job.run, resolved, planned, here)
  fingerprint = job.dataset.fingerprint()
  same_data(job.run, fingerprint)
  return {"config": resolved, "fingerprint": fingerprint}


@contextlib.contextmanager
def failures_noted(runs: Sequence[Run]) -> Iterator[None]:
  """Writes an error, other than an interruption, to the error.txt of the runs that failed."""
  try:
    yield
  except Interrupted:
    raise
  except Exception as error:
    if distributed.is_leader():
      for run in error.runs if isinstance(error, Diverged) else runs:
        with contextlib.suppress(OSError):  # the disk may be what failed
          run.write_failure(one_line(error))
    raise


def check_devices(config: ConfigDict, images: int) -> None:
  """Raises ValueError if the devices do not divide the batch; warns about a short last one.

  Each device would compute the whole batch. A CPU in one process needs no check: the number of
  its devices was chosen to divide the batch.
  """
  devices = host.mesh(config.devices).size
  if devices == 1 or jax.default_backend() == "cpu" and jax.process_count() == 1:
    return
  batch = min(config.batch_size, images) // config.accumulate
  if batch % devices:
    raise ValueError(
      f"{devices} devices do not divide {batch} images, each would compute all of them; take a "
      f"config.batch_size that is a multiple of {devices * config.accumulate}, or fewer "
      "config.devices (of each process)"
    )
  if (last := images % config.batch_size) % devices:
    print(
      f"the last batch of an epoch has {last} images, which {devices} devices do not divide: "
      "each computes all of them"
    )


def already_finished(config: ConfigDict, run: Run) -> Result | None:
  """The `Result` of a run that finished with this config, or None; needs no data.

  Images of the user's in another place may be others: None, so that they are compared.
  """
  finished = run.finished
  if not finished:
    return None
  there, asked = completed(finished.numbers["config"]), resolve(config, run.path)
  if config.data.name in USERS_OWN:
    was, now = (os.path.realpath(data["dir"]) for data in (there["data"], asked["data"]))
    if was != now:
      return None
  options = {name: there["data"].get(name) for name in asked["data"]}  # without measurements
  return None if differing(there | {"data": options}, asked) else finished


def say_finished(finished: Result) -> None:
  print(f"{finished.run.path} is finished; nothing to do\n{closing(finished.numbers)}")


def planned_epochs(config: ConfigDict, run: Run) -> int | None:
  """The epochs before the run was, or is now, extended; None if it is not extended."""
  if run.planned_epochs or not run.result:
    return run.planned_epochs
  epochs = run.result["epochs"]
  return epochs if config.epochs > epochs else None


def same_run(
  run: Run, resolved: dict[str, Any], planned: int | None, environment: dict[str, Any]
) -> None:
  """Raises ValueError if the folder has a run of another config; prints what else changed.

  A larger `config.epochs` extends a finished run.
  """
  record = run.record
  if record is None:
    return
  there = run.require_config()
  if planned and run.result and resolved["epochs"] > there["epochs"]:
    there["epochs"] = resolved["epochs"]
  if different := differing(there, resolved):
    raise ValueError(
      f"{run.path} holds a run of another config ({'; '.join(different)}); "
      "use that config again, or another --workdir"
    )
  was, here = ({name: config[name] for name in LAST_BITS} for config in (there, resolved))
  print_changes(was | record["environment"], here | environment)


def print_changes(was: dict[str, Any], here: dict[str, Any]) -> None:
  """Prints one line if a run is resumed on another machine, or with other library versions."""
  was = {"convolutions": "XLA", "runs_together": 1} | was
  names = ("python", "device", "devices", "cores", "convolutions", "runs_together")
  names += tuple(sorted(LAST_BITS - {"devices"}))  # "devices" is the actual number
  changed = [f"{n}: {was[n]} -> {here[n]}" for n in names if n in was and was[n] != here[n]]
  for name, version in here["versions"].items():
    before = was.get("versions", {}).get(name, version)
    changed += [f"{name}: {before} -> {version}"] * (before != version)
  if changed:
    print(
      f"the machine or its software has changed ({', '.join(changed)}): results may differ in "
      "the last bits"
    )


def same_data(run: Run, fingerprint: dict[str, dict[str, Any]]) -> None:
  """Raises ValueError if images or labels have changed; old runs have no fingerprint."""
  there = (run.record or {}).get("fingerprint")
  if there is None or there == fingerprint:
    return

  def show(split):
    return f"{split['images']} images ({split['digest']})" if split else "absent"

  different = [
    f"the {name} split was {show(there.get(name))} and is {show(fingerprint.get(name))}"
    for name in there | fingerprint
    if there.get(name) != fingerprint.get(name)
  ]
  raise ValueError(
    f"{run.path} was started with other data: {', '.join(different)}; restore them, or use "
    "another --workdir"
  )


def closing(result: dict[str, Any]) -> str:
  """The table that a run prints when it is finished."""
  rows = [
    (
      name,
      "single network" if reader["single"] else "several networks",
      *(f"{reader[which]:.4f}" for which in ("last", "best")),
      f"{reader['best_epoch']:g}",
      "-" if reader["at_best_validation"] is None else f"{reader['at_best_validation']:.4f}",
    )
    for name, reader in result["readers"].items()
  ]
  rows.sort(key=lambda row: row[1] != "single network")
  headers = ("reader", "kind", "last epoch", "best on test", "at epoch", "chosen on validation")
  if all(row[-1] == "-" for row in rows):  # there is no validation split
    rows, headers = [row[:-1] for row in rows], headers[:-1]
  best = result["best_single"]
  return (
    f"test accuracy, one seed ({result['seed']}), {result['evaluations']} evaluations\n"
    + tabulate(rows, headers, disable_numparse=True)
    + f"\nbest single network: {best['reader']} {best['accuracy']:.4f} at epoch "
    f"{best['epoch']:g}, chosen on {best['chosen_on']}"
  )
