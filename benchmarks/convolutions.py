"""Time of single convolutions on one core: XLA's in the form it is fast in, and oneDNN's.

    python -m benchmarks.convolutions [--images=32]

Milliseconds for the output, the gradient of the image and the gradient of the kernel, the best
of some calls that alternate. What `onednn.takes` leaves to XLA is in brackets.
"""

import argparse
import os
import time
from functools import partial

GEOMETRIES = [  # size, window, channels in and out, stride, groups, dilation
  (32, 3, 3, 16, 1, 1, 1),
  (32, 3, 16, 16, 1, 1, 1),
  (32, 3, 16, 32, 2, 1, 1),
  (16, 3, 32, 32, 1, 1, 1),
  (16, 3, 32, 64, 2, 1, 1),
  (8, 3, 64, 64, 1, 1, 1),
  (32, 1, 16, 16, 1, 1, 1),
  (32, 1, 16, 64, 1, 1, 1),
  (32, 1, 64, 16, 1, 1, 1),
  (32, 1, 64, 32, 1, 1, 1),
  (32, 1, 16, 32, 2, 1, 1),
  (32, 1, 64, 128, 2, 1, 1),
  (16, 1, 128, 32, 1, 1, 1),
  (16, 1, 32, 128, 1, 1, 1),
  (16, 1, 32, 64, 2, 1, 1),
  (16, 1, 128, 256, 2, 1, 1),
  (8, 1, 256, 64, 1, 1, 1),
  (8, 1, 64, 256, 1, 1, 1),
  (32, 1, 60, 48, 1, 1, 1),
  (32, 3, 48, 12, 1, 1, 1),
  (16, 1, 156, 48, 1, 1, 1),
  (16, 3, 48, 12, 1, 1, 1),
  (8, 3, 48, 12, 1, 1, 1),
  (32, 3, 64, 64, 1, 1, 1),
  (16, 3, 128, 128, 1, 1, 1),
  (8, 3, 256, 256, 1, 1, 1),
  (4, 3, 512, 512, 1, 1, 1),
  (2, 3, 512, 512, 1, 1, 1),
  (32, 3, 128, 128, 1, 1, 1),
  (32, 1, 64, 128, 1, 1, 1),
  (32, 3, 128, 256, 2, 1, 1),
  (64, 7, 3, 64, 2, 1, 1),
  (32, 3, 32, 32, 1, 32, 1),
  (16, 3, 128, 128, 1, 128, 1),
  (16, 3, 128, 128, 2, 128, 1),
  (4, 3, 512, 512, 1, 512, 1),
  (16, 3, 64, 64, 1, 4, 1),
  (16, 3, 64, 64, 2, 4, 1),
  (16, 3, 48, 48, 1, 16, 1),
  (16, 3, 32, 32, 1, 1, 2),
  (16, 3, 5, 7, 1, 1, 1),
]
CALLS = 15


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--images", type=int, default=32)
  args = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
  from okdph_jax.runtime import host

  host.configure(devices=1)
  from okdph_jax.nn import onednn

  if not onednn.choice().onednn:
    parser.error(f"convolutions: {onednn.choice()}")
  print(f"{'size, window, channels, stride, groups, dilation':50} output / image / kernel, ms")
  for geometry in GEOMETRIES:
    size, window, inputs, outputs, stride, groups, dilation = geometry
    name = f"{size}x{size}, {window}x{window}, {inputs} to {outputs}"
    name += f", stride {stride}" * (stride > 1) + f", {groups} groups" * (groups > 1)
    name += f", dilation {dilation}" * (dilation > 1)
    both = list(zip(*times(args.images, *geometry), strict=True))
    print(f"{name:50} XLA {' / '.join(both[0]):30} oneDNN {' / '.join(both[1])}", flush=True)


def times(images, size, window, inputs, outputs, stride, groups, dilation):
  """(XLA's, oneDNN's) milliseconds for each of the three tensors."""
  import jax
  from jax import lax

  from okdph_jax.nn import convolution_cpu, onednn
  from okdph_jax.nn.convolution import Geometry, plain
  from okdph_jax.runtime import host

  key = jax.random.key(0)
  lhs = jax.random.normal(key, (images, size, size, inputs))
  rhs = jax.random.normal(key, (window, window, inputs // groups, outputs))
  pad = (window // 2 * dilation,) * 2
  layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
  geometry = Geometry((stride,) * 2, (pad,) * 2, (1, 1), (dilation,) * 2, layout, groups, None)
  out = geometry.convolve(lhs, rhs)
  tensors = {"lhs": lhs, "rhs": rhs, "out": out}
  for target in ("out", "lhs", "rhs"):
    operands = [x for role, x in tensors.items() if role != target]
    options = {"target": target, "shape": tensors[target].shape, "geometry": geometry}
    compiled = [
      jax.jit(partial(solve, **options), compiler_options=host.compiler_options())
      .lower(*operands)
      .compile()
      for solve in (
        partial(convolution_cpu.solve, plain=plain),
        partial(onednn.convolve, stacked=False),
      )
    ]
    best = [float("inf")] * 2
    for _ in range(CALLS):
      for i, run in enumerate(compiled):
        began = time.perf_counter()
        jax.block_until_ready(run(*operands))
        best[i] = min(best[i], time.perf_counter() - began)
    xla, own = (f"{1e3 * seconds:.2f}" for seconds in best)
    taken = onednn.takes(target, geometry, lhs.shape, rhs.shape, lhs.dtype)
    yield xla, own if taken else f"({own})"


if __name__ == "__main__":
  main()
