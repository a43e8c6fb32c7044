"""Time of the OKDPH step per FLOP, of every network beside resnet32's.

    python -m benchmarks.networks [NETWORK ...] [--batch=32]

Two students and the hybrid, float32, views given, compiled as `train` compiles the step. FLOPs
are XLA's count for the step as it is written. resnet32 takes its turn between the steps of each
network, so that a machine that drifts drifts for both; a time is the best of four turns.
Networks for ImageNet get images of 224 and a quarter of the batch.
"""

import argparse
import functools
import time

from okdph_jax import host

IMAGENET = ("resnet18", "resnet34", "resnet50", "mobilenet_v1")
ROW = "{:20} {:>8} {:>6} {:>10} {:>8} {:>12} {:>9} {:>11}"
COLUMNS = "network", "image", "batch", "compile s", "ms/step", "GFLOP/image", "ms/GFLOP"
TURNS = 4


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("networks", nargs="*", help="names; all by default")
  parser.add_argument("--batch", type=int, default=32, help="images of 32x32 per step")
  args = parser.parse_args()
  host.use_huge_pages()
  host.configure(batch=args.batch)
  from okdph_jax import models

  try:
    for name in args.networks:
      models.build(name, classes=10)
  except ValueError as error:
    parser.error(str(error))
  reference, _, per_image = build("resnet32", args.batch)
  flops = per_image * args.batch
  print(ROW.format(*COLUMNS, "resnet32 = 1"), flush=True)
  for name in args.networks or models.NETS:
    size, batch = (224, max(args.batch // 4, 1)) if name in IMAGENET else (32, args.batch)
    run, seconds, per_image = build(name, batch, size)
    times = [(timed(run), timed(reference)) for _ in range(TURNS)]
    own, other = map(min, zip(*times, strict=True))
    cost = own / (per_image * batch)
    row = (
      f"{size}x{size}",
      batch,
      f"{seconds:.0f}",
      f"{1e3 * own:.0f}",
      f"{per_image / 1e9:.2f}",
    )
    relative = cost * flops / other
    print(ROW.format(name, *row, f"{1e12 * cost:.2f}", f"{relative:.2f}"), flush=True)


def build(network, batch, size=32, classes=10):
  """(a function that makes one step, seconds to compile it, FLOPs per image)."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from okdph_jax import models
  from okdph_jax.methods import METHODS
  from okdph_jax.methods.protocol import Task
  from okdph_jax.nouns import Batch
  from okdph_jax.step import initial_state, train_step

  task = Task(models.build(network, classes), classes, epoch_steps=391, epochs=300)
  method = METHODS["okdph"](task, students=2)
  tx = method.optimizer(0.05, momentum=0.9, weight_decay=5e-4)
  parts = method, tx, lambda key, image: image  # the views are given
  everywhere = NamedSharding(host.mesh(), PartitionSpec())
  along = functools.partial(NamedSharding, host.mesh())
  key = jax.device_put(jax.random.key(0), everywhere)
  image = jax.random.normal(key, (method.views, batch, size, size, 3))
  image = jax.device_put(image, along(PartitionSpec(None, "data")))
  label = jax.device_put(jnp.zeros(batch, jnp.int32), along(PartitionSpec("data")))
  start = functools.partial(initial_state, *parts)
  start = jax.jit(start, out_shardings=everywhere, compiler_options=host.once_only())
  state = start(Batch(image, label), key)
  step = functools.partial(train_step, *parts)
  options = {"compiler_options": host.compiler_options()}
  step = jax.jit(step, donate_argnums=0, out_shardings=everywhere, **options)
  began = time.perf_counter()
  traced = step.trace(state, Batch(image, label), key)
  compiled = traced.lower().compile()
  seconds = time.perf_counter() - began
  flops = traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"] / batch

  def run():
    nonlocal state
    state, metrics = compiled(state, Batch(image, label), key)
    jax.block_until_ready((state, metrics))

  run()
  return run, seconds, flops


def timed(run):
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


if __name__ == "__main__":
  main()
