"""Time and memory of the OKDPH step, beside PyTorch eager where torch is installed.

    python -m benchmarks.train_step [--network=resnet32 --students=2 --batch=128]

One worker process each for JAX, PyTorch (NCHW, the release's layout) and PyTorch
channels-last; they take turns, so that a machine that drifts drifts for all. One process
could not give separate peaks of memory, and our huge pages would change PyTorch's.
PyTorch's step is given its views, and `okdph_jax_ms` and `ratio` are of our step given the
same; the whole step, views included, stands beside them. Times are the best of all rounds,
peaks are of the whole process when its first steps are done. Run it while nothing else does.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time

VIEWS = ("hflip", "hflip+rot", "cutout", "augment", "auto_aug")
WORKERS = ("jax", "torch", "torch_channels_last")


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--network", default="resnet32")
  parser.add_argument("--students", type=int, default=2)
  parser.add_argument("--batch", type=int, default=128, help="images per step")
  parser.add_argument("--rounds", type=int, default=4, help="turns of each worker")
  parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
  parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    return work(args)
  known(parser, args.network)
  compare(args)


def known(parser, *networks):
  """Ends with one line, before anything starts, where a network is not known."""
  from okdph_jax import models

  try:
    for name in networks:
      models.build(name, classes=10)
  except ValueError as error:
    parser.error(str(error))


def compare(args):
  """Lets the workers take turns and prints what they measured; the last line is JSON."""
  names = WORKERS[:1]
  if importlib.util.find_spec("torch"):
    from benchmarks.torch_step import NETWORKS

    names = WORKERS if args.network in NETWORKS else names
  command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], "--worker"]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  workers, ready = {}, {}
  for name in names:  # one after another: each builds, compiles and warms up alone
    workers[name] = subprocess.Popen([*command, name], **pipes)
    ready[name] = ask(workers[name])
  rounds = [
    {name: ask(worker, "go") for name, worker in workers.items()} for _ in range(args.rounds)
  ]
  for worker in workers.values():
    worker.communicate("stop\n")
  peak = {name: answer["peak_mb"] for name, answer in ready.items()}
  best = {
    name: {part: min(turn[name][part] for turn in rounds) for part in rounds[0][name]}
    for name in names
  }
  ours = best["jax"]
  ours["backward and update"] = ours["step, views given"] - ours["forward"]
  setting = f"{args.network}, {args.students} students and the hybrid, batch {args.batch}"
  print(f"{setting}, {ready['jax']['devices']}")
  order = "step", "step, views given", "views", "forward", "backward and update"
  for part in order:
    print(f"  okdph_jax {part:20} {1e3 * ours[part]:8.0f} ms  {rate(args, ours[part])}")
  for name in names[1:]:
    print(f"  {name:30} {1e3 * best[name]['step']:8.0f} ms  {rate(args, best[name]['step'])}")
  print(f"  compiled in {ready['jax']['compile_s']:.0f} s; peak memory in MB: {peak}")

  def ms(name):
    return round(1e3 * best[name]["step"], 1) if name in best else None

  given = round(1e3 * ours["step, views given"], 1)
  result = {
    "okdph_jax_ms": given,
    "torch_ms": ms("torch"),
    "torch_channels_last_ms": ms("torch_channels_last"),
    "ratio": round(given / ms("torch"), 3) if "torch" in best else None,
    "compile_s": round(ready["jax"]["compile_s"], 1),
    "peak_mb": peak["jax"],
    "torch_peak_mb": peak.get("torch"),
    "okdph_jax_with_views_ms": ms("jax"),
  }
  print(json.dumps(result))


def rate(args, seconds):
  return f"{args.batch / seconds:8.0f} images/s"


def ask(worker, word=""):
  """Sends a word and waits for the line of JSON that answers it."""
  if word:
    worker.stdin.write(word + "\n")
    worker.stdin.flush()
  answer = worker.stdout.readline()
  if not answer:
    raise SystemExit(f"a worker ended with {worker.wait()}: {' '.join(worker.args)}")
  return json.loads(answer)


def work(args):
  """A worker: says that it is ready, then measures at every "go"."""
  parts, about = jax_parts(args) if args.worker == "jax" else torch_parts(args)
  for run in parts.values():
    run()
  print(json.dumps(about), flush=True)
  while input() == "go":
    times = {name: min(timed(run) for _ in range(args.steps)) for name, run in parts.items()}
    print(json.dumps(times), flush=True)


def peak_mb(run):
  """The most memory that this process has held once it has run three steps."""
  for _ in range(3):
    run()
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def timed(run):
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def torch_parts(args):
  from benchmarks.torch_step import step_function

  last = args.worker == "torch_channels_last"
  step = step_function(args.network, args.students, args.batch, last)
  return {"step": step}, {"peak_mb": peak_mb(step)}


def jax_parts(args):
  """The step as `train` runs it, and its parts, as functions without arguments."""
  from okdph_jax.runtime import host

  host.use_huge_pages()
  host.configure(batch=args.batch)
  import jax
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  from okdph_jax import views
  from okdph_jax.core import Batch, Views

  method, tx = okdph(args.network, args.students)
  specs = [VIEWS[v % len(VIEWS)] for v in range(method.views)]
  augment = views.make(specs, (0.5,) * 3, (0.25,) * 3)
  mesh = host.mesh()
  everywhere = NamedSharding(mesh, PartitionSpec())
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (args.batch, 32, 32, 3), np.uint8)
  label = rng.integers(0, 10, args.batch, np.int32)
  batch = jax.device_put(Batch(image, label), NamedSharding(mesh, PartitionSpec("data")))
  key = jax.device_put(jax.random.key(0), everywhere)
  options = {"compiler_options": host.compiler_options()}

  def forward(learner, batch, key):
    return method.losses(learner, Views(*batch), 0, key)

  built = compiled(method, tx, augment, batch, key)
  whole = stepping(built.state, built.advance, batch, key)
  peak = peak_mb(whole)
  look = jax.jit(augment, **options).lower(key, batch.image).compile()
  seen = batch._replace(image=look(key, batch.image))
  views_given = compiled(method, tx, given, seen, key)
  learner = jax.tree.map(lambda x: x.copy(), views_given.state.learner)
  forward = jax.jit(forward, **options).lower(learner, seen, key).compile()
  parts = {
    "step": whole,
    "step, views given": stepping(views_given.state, views_given.advance, seen, key),
    "views": lambda: jax.block_until_ready(look(key, batch.image)),
    "forward": lambda: jax.block_until_ready(forward(learner, seen, key)),
  }
  machine = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {host.cores()} cores"
  return parts, {"compile_s": built.seconds, "devices": machine, "peak_mb": peak}


def okdph(network, students):
  """The method, two or more students and the hybrid on ten classes, and its optimizer."""
  from okdph_jax import models
  from okdph_jax.methods import METHODS
  from okdph_jax.methods.protocol import Context

  task = Context(models.build(network, 10), 10, epoch_steps=391, epochs=300)
  method = METHODS["okdph"](task, students=students)
  return method, method.optimizer(0.05, momentum=0.9, weight_decay=5e-4)


def given(key, image):
  """In place of views: the images are views already."""
  del key
  return image


def compiled(method, tx, augment, batch, key):
  """The step for this batch, `Compiled` as training does it."""
  from okdph_jax.training.compile import abstract, background, compile_steps

  shapes = {len(batch.label): abstract(batch)}
  with background() as thread:
    built = compile_steps(lambda numbers: (method, tx), {}, augment, shapes, key, thread)
    built.flops.result()
  return built


def stepping(state, step, batch, key):
  """A function that makes one step and waits for it."""
  import jax

  def run():
    nonlocal state
    state, metrics = step(state, batch, key)
    jax.block_until_ready((state, metrics))

  return run


if __name__ == "__main__":
  main()
