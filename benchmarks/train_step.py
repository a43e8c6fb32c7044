"""Time and memory of the OKDPH step, beside PyTorch eager where torch is installed.

    python -m benchmarks.train_step [--network=resnet32 --students=2 --batch=128 --seeds=5]

One worker process each for JAX, JAX in bfloat16 and JAX with XLA's own convolutions where
oneDNN's are in use, PyTorch (NCHW, the release's layout) and PyTorch channels-last; they
take turns, so that a machine that drifts drifts for all. One process could not give separate
peaks of memory, and our huge pages would change PyTorch's. PyTorch's step is given its views;
ours is timed with its views given and with the views included, step by step in turn. Times are
the best of all rounds, in wall time and in CPU time of all threads, which other processes
disturb less; peaks are of a process that has compiled the step and made three. With --seeds=N
the same step is also timed for N runs of other seeds in one program; "seeds_gain" is the time
of N single steps over its own. The last line is JSON. Run it while nothing else does.
"""

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import time

from tabulate import tabulate

from okdph_jax.runtime import host, memory

VIEWS = ("hflip", "hflip+rot", "cutout", "augment", "auto_aug")
BFLOAT16, XLA = "okdph_jax_bfloat16", "okdph_jax_xla"
WORKERS = ("okdph_jax", BFLOAT16, XLA, "torch", "torch_channels_last")
STEP, WITH_VIEWS = "step, views given", "step"
OF_SEEDS = "step of all seeds, views given"


def main():
  parser = problem_parser(__doc__)
  parser.add_argument("--seeds", type=int, default=1, help="runs that are one program")
  parser.add_argument("--rounds", type=int, default=4, help="turns of each worker")
  parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
  parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
  parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # without parts
  args = parser.parse_args()
  if args.worker:
    return work(args)
  known(parser, args.network)
  compare(args)


def problem_parser(text):
  """A parser of what `problem` needs; the first line of `text` describes the program."""
  parser = argparse.ArgumentParser(description=text.splitlines()[0])
  parser.add_argument("--network", default="resnet32")
  parser.add_argument("--students", type=int, default=2)
  parser.add_argument("--batch", type=int, default=128, help="images per step")
  parser.add_argument("--size", type=int, default=32, help="pixels along a side of an image")
  return parser


def known(parser, *networks):
  """Ends with one line, before anything starts, where a network is not known."""
  from okdph_jax import models

  try:
    for name in networks:
      models.build(name, classes=10)
  except ValueError as error:
    parser.error(str(error))


def compare(args):
  """Lets the workers take turns and prints what they measured."""
  workers = start(args)
  best = take_turns(workers.values(), args.rounds)
  about = {name: worker.about for name, worker in workers.items()}
  ours = about["okdph_jax"]
  print(
    f"{args.network}, {args.students} students and the hybrid, batch {args.batch}, "
    f"{ours['devices']}, convolutions: {ours['convolutions']}"
  )
  rows = [
    (
      name,
      part,
      *(f"{1e3 * seconds:.0f}" for seconds in times),
      f"{args.batch * (args.seeds if part == OF_SEEDS else 1) / times[0]:.0f}",
      *((about[name]["peak_mb"], about[name].get("compile_s")) if part == STEP else ("", "")),
    )
    for name, parts in zip(workers, best, strict=True)
    for part, times in parts.items()
  ]
  columns = "", "", "ms", "CPU ms", "images/s", "peak MB", "compiled in s"
  print(tabulate(rows, columns, disable_numparse=True))
  result = {"convolutions": ours["convolutions"], "compile_s": ours["compile_s"]}
  for name, parts in zip(workers, best, strict=True):
    wall, cpu = (round(1e3 * seconds, 1) for seconds in parts[STEP])
    result |= {f"{name}_ms": wall, f"{name}_cpu_ms": cpu}
    result[f"{name}_peak_mb"] = about[name]["peak_mb"]
  result["okdph_jax_with_views_ms"] = round(1e3 * best[0][WITH_VIEWS][0], 1)
  if OF_SEEDS in best[0]:
    wall, cpu = best[0][OF_SEEDS]
    result |= {"seeds_ms": round(1e3 * wall, 1), "seeds_cpu_ms": round(1e3 * cpu, 1)}
    result["seeds_gain"] = round(args.seeds * best[0][STEP][0] / wall, 2)
  if "torch" in workers:
    result["ratio"] = round(result["okdph_jax_ms"] / result["torch_ms"], 3)
    last = result["torch_channels_last_ms"]
    result["ratio_channels_last"] = round(result["okdph_jax_ms"] / last, 3)
    result["ratio_channels_last_with_views"] = round(
      result["okdph_jax_with_views_ms"] / last, 3
    )
  print(json.dumps(result))


class Worker:
  """A process of this module that builds one implementation and measures it when asked."""

  def __init__(self, name, **options):
    command = [sys.executable, "-m", "benchmarks.train_step", f"--worker={name}"]
    for key, value in options.items():
      command += [f"--{key}"] if value is True else [f"--{key}={value}"]
    environment = dict(os.environ)
    if name == XLA:
      environment["OKDPH_CONVOLUTION"] = "xla"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    self.process = subprocess.Popen(command, env=environment, **pipes)
    self.about = self.answer()

  def measure(self):
    """{part: (seconds of wall time, of CPU time)}, the best of a turn's steps."""
    self.process.stdin.write("go\n")
    self.process.stdin.flush()
    return self.answer()

  def stop(self):
    self.process.communicate("stop\n")

  def answer(self):
    answer = self.process.stdout.readline()
    if not answer:
      raise SystemExit(f"{' '.join(self.process.args)} ended with {self.process.wait()}")
    return json.loads(answer)


def start(args):
  """{name: worker}, begun one after another: each builds, compiles and warms up alone."""
  names = "network", "students", "batch", "steps", "size"
  options = {name: getattr(args, name) for name in names}
  workers = {"okdph_jax": Worker("okdph_jax", **options, seeds=args.seeds)}
  onednn = workers["okdph_jax"].about["convolutions"].startswith("oneDNN")
  names = [BFLOAT16] * (onednn and host.has_bfloat16()) + [XLA] * onednn
  if has_torch(args.network) and args.size == 32:
    names += ["torch", "torch_channels_last"]
  return workers | {name: Worker(name, **options) for name in names}


def has_torch(network):
  """Whether PyTorch is installed and `torch_step` has this network."""
  if importlib.util.find_spec("torch") is None:
    return False
  from benchmarks.torch_step import NETWORKS

  return network in NETWORKS


def take_turns(workers, rounds):
  """The best times of each worker, {part: (wall, CPU)}; ends them."""
  turns = [[worker.measure() for worker in workers] for _ in range(rounds)]
  for worker in workers:
    worker.stop()
  return [
    {part: tuple(map(min, zip(*(turn[part] for turn in own), strict=True))) for part in own[0]}
    for own in zip(*turns, strict=True)
  ]


def work(args):
  """A worker: says that it is ready, then measures at every "go"."""
  ours = args.worker.startswith("okdph_jax")
  parts, about = jax_parts(args) if ours else torch_parts(args)
  for run in parts.values():
    run()
  print(json.dumps(about), flush=True)
  while input() == "go":
    print(json.dumps(timed(parts, args.steps)), flush=True)


def peak_mb(run):
  """The most memory that this process has held once it has run three steps."""
  for _ in range(3):
    run()
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def timed(parts, steps):
  """{part: (wall, CPU) seconds}, each the best of these steps; the parts take turns."""
  times = {name: [] for name in parts}
  for _ in range(steps):
    for name, run in parts.items():
      wall, cpu = time.perf_counter(), time.process_time()
      run()
      times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
  return {name: tuple(map(min, zip(*own, strict=True))) for name, own in times.items()}


def torch_parts(args):
  from benchmarks.torch_step import step_function

  last = args.worker == "torch_channels_last"
  step = step_function(args.network, args.students, args.batch, last)
  return {STEP: step}, {"peak_mb": peak_mb(step)}


def jax_parts(args):
  """The step as `train` runs it, and its parts, as functions without arguments."""
  memory.keep_large_blocks()
  configure_jax(args)
  import jax

  from okdph_jax.core import Views
  from okdph_jax.methods.protocol import trained_as
  from okdph_jax.nn import onednn
  from okdph_jax.nn.execution import Execution
  from okdph_jax.training.feed import as_they_are

  jax.config.update("jax_enable_compilation_cache", False)  # compile times are first ones
  method, tx, augment, batch, key = problem(args)
  if args.worker == BFLOAT16:
    method = trained_as(method, Execution("products"))
  options = {"compiler_options": host.compiler_options()}

  def forward(learner, batch, key):
    return method.losses(learner, Views(*batch), 0, key)

  parts, whole = {}, None
  if not args.alone:  # first of all: the peak is that of a process that compiles nothing else
    parts[WITH_VIEWS], *whole = prepared(method, tx, augment, batch, key)
  look = jax.jit(augment, **options).lower(key, batch.image).compile()
  seen = batch._replace(image=look(key, batch.image))
  parts[STEP], *given_views = prepared(method, tx, as_they_are, seen, key)
  learner = jax.jit(method.init)(key, seen.image)
  if not args.alone:
    ahead = jax.jit(forward, **options).lower(learner, seen, key).compile()
    parts["views"] = lambda: jax.block_until_ready(look(key, batch.image))
    parts["forward"] = lambda: jax.block_until_ready(ahead(learner, seen, key))
  if args.seeds > 1:
    keys = jax.device_put(jax.random.split(key, args.seeds), key.sharding)
    parts[OF_SEEDS], *_ = prepared(method, tx, as_they_are, seen, keys)
  peak, seconds = whole or given_views
  about = {
    "compile_s": seconds,
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {host.cores()} cores",
    "convolutions": str(onednn.choice()),
    "multiplications": multiplications(jax.make_jaxpr(forward)(learner, seen, key).jaxpr),
    "peak_mb": peak,
  }
  return parts, about


def configure_jax(args):
  """As a run of this network and batch prepares JAX."""
  from okdph_jax import models

  net = models.build(args.network, classes=10)
  host.configure(batch=args.batch, parameters=models.parameters(net, (32, 32, 3)))


def problem(args):
  """(method, optimizer, views, a random batch on all devices, key)."""
  import jax
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  from okdph_jax import views
  from okdph_jax.core import Batch

  method, tx = okdph(args.network, args.students)
  specs = [VIEWS[v % len(VIEWS)] for v in range(method.views)]
  augment = views.make(specs, (0.5,) * 3, (0.25,) * 3)
  mesh = host.mesh()
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (args.batch, args.size, args.size, 3), np.uint8)
  label = rng.integers(0, 10, args.batch, np.int32)
  batch = jax.device_put(Batch(image, label), NamedSharding(mesh, PartitionSpec("data")))
  key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))
  return method, tx, augment, batch, key


def prepared(method, tx, augment, batch, key):
  """(a function that makes one step, peak MB after three, seconds to compile)."""
  built = compiled(method, tx, augment, batch, key)
  run = stepping(built.state, built.advance, (batch,) * key.size if key.ndim else batch, key)
  return run, peak_mb(run), round(built.seconds, 1)


def multiplications(jaxpr):
  """Multiply-accumulates of the convolutions of a program, products with padding included."""
  from jax.extend import core

  total = 0
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      if isinstance(value, core.ClosedJaxpr):
        total += multiplications(value.jaxpr)
      elif isinstance(value, core.Jaxpr):
        total += multiplications(value)
    if equation.primitive.name == "convolution":
      target, shape, stacked = (
        equation.params[name] for name in ("target", "shape", "stacked")
      )
      shapes = [variable.aval.shape for variable in equation.invars]
      lhs_rhs_out = {"out": [*shapes, shape], "lhs": [shape, *shapes]}
      _, rhs, out = lhs_rhs_out.get(target, [shapes[0], shape, shapes[1]])
      total += math.prod(out) * math.prod(rhs[stacked:-1])
  return total


def okdph(network, students, classes=10):
  """The method, two or more students and the hybrid, and its optimizer."""
  from okdph_jax import models
  from okdph_jax.methods import METHODS
  from okdph_jax.methods.protocol import Context

  task = Context(models.build(network, classes), classes, epoch_steps=391, epochs=300)
  method = METHODS["okdph"](task, students=students)
  return method, method.optimizer(0.05, momentum=0.9, weight_decay=5e-4)


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
    state, metrics = step(state, (batch,), key)
    jax.block_until_ready((state, metrics))

  return run


if __name__ == "__main__":
  main()
