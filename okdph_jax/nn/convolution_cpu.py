"""How XLA:CPU is best asked for a convolution that oneDNN does not compute.

The sums are the same, put differently: XLA's convolution is near the machine's peak for some
shapes and up to a hundred times slower for others. `docs/onednn.md` has the measurements.
Images are channels-last, [B, *space, C], and kernels [*window, C, O], as in `nn.Conv`; other
layouts pass as they are.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from okdph_jax.runtime import host

# With at most NARROW x NARROW channels one pixel's output does not keep XLA's loops busy.
NARROW = 16
# A kernel's gradient is taken PIECE images at a time, so that they stay in the cache; from
# PIECE x PIECES on more images at a time, since every piece is compiled for itself. With
# AVX-512, cutting the pieces costs more than it gains below WIDE channels.
PIECE, PIECES, WIDE = 16, 8, 128


def solve(a, b, *, target, shape, geometry, plain):
  """The tensor `target` of a convolution from the two others, as `convolution` binds them.

  plain: the same for any bilinear `convolve(geometry, lhs, rhs)`, by transposing it.
  """
  # Without the first barrier XLA:CPU fuses the BatchNorm and ReLU that feed a convolution into
  # it and computes them again for every block of the kernel: half of a training step. Without
  # the last, what follows reads a reshaped result several times more slowly.
  a, b = lax.optimization_barrier((a, b))
  shapes = {"out": (a.shape, b.shape), "lhs": (shape, a.shape), "rhs": (a.shape, shape)}
  convolve = _form(target, geometry, *shapes[target])
  if target == "lhs" and convolve is _two_pixels_at_once:  # its mirror image is itself
    solution = convolve(geometry, b, _flip(a))
  else:
    solution = plain(a, b, target=target, shape=shape, geometry=geometry, convolve=convolve)
  return lax.optimization_barrier(solution)


def materialize(outputs):
  """A block's outputs, kept on a CPU; the identity on every other platform.

  Through a chain of residual sums XLA:CPU would otherwise compute each block's output again for
  all that uses it, back to the first block.
  """
  return lax.platform_dependent(
    outputs, cpu=lax.optimization_barrier, default=lambda outputs: outputs
  )


def _form(target, geometry, lhs, rhs):
  """The bilinear `convolve(geometry, lhs, rhs)` to take for tensors of these shapes."""
  *window, depth, width = rhs
  as_it_is = type(geometry).convolve
  if not geometry.channels_last:
    return as_it_is
  if geometry.feature_group_count > 1:
    return _sum_of_taps if depth == 1 and geometry.feature_group_count == width else as_it_is
  reach = [(k - 1) * d + 1 for k, d in zip(window, geometry.rhs_dilation, strict=True)]
  if max(window) == 1 or any(n < r for n, r in zip(lhs[1:-1], reach, strict=True)):
    return _product_of_patches
  if target == "rhs":
    gains = width >= WIDE or "avx512f" not in host.cpu_flags()
    return _in_pieces if gains and lhs[0] % PIECE == 0 else as_it_is
  same = all(
    (low, high) == ((k - 1) / 2,) * 2
    for (low, high), k in zip(geometry.padding, window, strict=True)
  )
  steps = {*geometry.window_strides, *geometry.lhs_dilation, *geometry.rhs_dilation}
  narrow = depth * width <= NARROW**2 and lhs[-2] % 2 == 0
  return _two_pixels_at_once if narrow and same and steps == {1} else as_it_is


def _two_pixels_at_once(geometry, lhs, rhs):
  """Two neighbours of a row as one output of twice the width, so that a register is filled.

  Both see a window one pixel wider, in which the kernel stands left or right: for 3x3 a third
  more multiplications, and a quarter less time.
  """
  around = [(0, 0)] * (rhs.ndim - 3)
  kernels = [jnp.pad(rhs, [*around, side, (0, 0), (0, 0)]) for side in ((0, 1), (1, 0))]
  by_two = geometry._replace(window_strides=(*geometry.window_strides[:-1], 2))
  return by_two.convolve(lhs, jnp.concatenate(kernels, -1)).reshape(*lhs.shape[:-1], -1)


def _flip(rhs):
  """The kernel that takes the gradient of a stride-1 output to that of its image."""
  return jnp.flip(rhs, range(rhs.ndim - 2)).swapaxes(-1, -2)


def _in_pieces(geometry, lhs, rhs):
  """A few images at a time; its transpose adds the pieces' kernel gradients.

  The pieces interleave, so that a batch sharded over devices stays where it is.
  """
  count = min(len(lhs) // PIECE, PIECES)
  images = lhs.reshape(-1, count, *lhs.shape[1:])
  outs = [geometry.convolve(images[:, i], rhs) for i in range(count)]
  return jnp.stack(outs, 1).reshape(-1, *outs[0].shape[1:])


def _product_of_patches(geometry, lhs, rhs):
  """One matrix product: of pixels for a window of 1x1, else of patches.

  XLA is slow at the kernel gradient of the former; at the output and the image's gradient of a
  map smaller than its window, which the latter is for, some eighty times slower.
  """
  taps = [tap for _, tap in _taps(geometry, lhs, rhs.shape[:-2])]
  patches = jnp.concatenate(taps, -1)
  product = jnp.matmul(
    lax.collapse(patches, 0, patches.ndim - 1),
    lax.collapse(rhs, 0, rhs.ndim - 1),
    precision=geometry.precision,
  )
  return product.reshape(*patches.shape[:-1], -1)


def _sum_of_taps(geometry, lhs, rhs):
  """A depthwise convolution as shifted products, which XLA fuses into one pass."""
  return sum(tap * rhs[*at, 0] for at, tap in _taps(geometry, lhs, rhs.shape[:-2]))


def _taps(geometry, lhs, window):
  """(place in the window, what of the image the outputs meet there [B, *out, C]), in order."""
  dims = zip(geometry.padding, geometry.lhs_dilation, strict=True)
  pads = [(0, 0, 0), *((*pad, dilation - 1) for pad, dilation in dims), (0, 0, 0)]
  lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), pads)
  first, *space, last = lhs.shape
  for place in np.ndindex(*window):
    steps = list(zip(place, window, geometry.rhs_dilation, strict=True))
    start = [i * d for i, _, d in steps]
    end = [n - (k - 1 - i) * d for n, (i, k, d) in zip(space, steps, strict=True)]
    strides = (1, *geometry.window_strides, 1)
    yield place, lax.slice(lhs, (0, *start, 0), (first, *end, last), strides)
