"""Time of the OKDPH step per FLOP, of every network beside resnet32's.

    python -m benchmarks.networks [NETWORK ...] [--batch=32]

Two students and the hybrid, float32, views given, compiled as `train` compiles the step. FLOPs
are XLA's count for the step as it is written. resnet32 takes its turn between the steps of each
network, so that a machine that drifts drifts for both; a time is the best of four turns.
Networks for ImageNet get images of 224 and a quarter of the batch.
"""

import argparse

from benchmarks.train_step import compiled, given, known, okdph, stepping, timed
from okdph_jax.runtime import host

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

  known(parser, *args.networks)
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


def build(network, batch, size=32):
  """(a function that makes one step, seconds to compile it, FLOPs per image)."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from okdph_jax.core import Batch

  method, tx = okdph(network, students=2)

  def place(array, *axes):
    return jax.device_put(array, NamedSharding(host.mesh(), PartitionSpec(*axes)))

  key = place(jax.random.key(0))
  image = jax.random.normal(key, (method.views, batch, size, size, 3))
  views = Batch(place(image, None, "data"), place(jnp.zeros(batch, jnp.int32), "data"))
  built = compiled(method, tx, given, views, key)
  run = stepping(built.state, built.advance, views, key)
  run()
  return run, built.seconds, built.flops.result()


if __name__ == "__main__":
  main()
