"""Faster forms of convolutions for XLA:CPU, for those that oneDNN does not compute.

XLA's convolution is near the machine's peak for some shapes and up to a hundred times slower
for others. These functions compute the same sums in a form that is fast; docs/onednn.md has the
measurements. Images are channels-last, [B, *space, C], and kernels [*window, C, O], as in
`nn.Conv`; other layouts are left to XLA.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from okdph_jax.runtime import host

# With at most NARROW x NARROW channels the output of one pixel does not fill XLA's vectors.
NARROW = 16
# The gradient of a kernel is computed for PIECE images at a time, so that they stay in the
# cache, but in at most PIECES parts, because each is compiled separately. With AVX-512 this is
# slower below WIDE channels.
PIECE, PIECES, WIDE = 16, 8, 128


def solve(a, b, *, target, shape, geometry, plain):
  """Computes `target` from the other two tensors; arguments as for `convolution_p`.

  plain: the same for a given bilinear `convolve(geometry, lhs, rhs)`, by transposing it.
  """
  # Without the first barrier XLA:CPU fuses the BatchNorm and ReLU before a convolution into it,
  # and computes them again for every block of the kernel: half of the time of a training step.
  # Without the last one, operations on a reshaped result are several times slower.
  a, b = lax.optimization_barrier((a, b))
  shapes = {"out": (a.shape, b.shape), "lhs": (shape, a.shape), "rhs": (a.shape, shape)}
  convolve = _form(target, geometry, *shapes[target])
  if target == "lhs" and convolve is _two_pixels_at_once:  # its transpose has the same form
    solution = convolve(geometry, b, _flip(a))
  else:
    solution = plain(a, b, target=target, shape=shape, geometry=geometry, convolve=convolve)
  return lax.optimization_barrier(solution)


def materialize(outputs):
  """An optimization barrier for the outputs of a block on a CPU; elsewhere the identity.

  XLA:CPU would otherwise compute the output of a residual block again for each consumer,
  back to the first block.
  """
  return lax.platform_dependent(
    outputs, cpu=lax.optimization_barrier, default=lambda outputs: outputs
  )


def _form(target, geometry, lhs, rhs):
  """The fastest bilinear `convolve(geometry, lhs, rhs)` for tensors of these shapes."""
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
  """Computes two neighbouring pixels as one output with twice the channels, to fill registers.

  The window is one pixel wider, with the kernel on its left or right side. A 3x3 kernel then
  takes a third more multiplications, and a quarter less time.
  """
  around = [(0, 0)] * (rhs.ndim - 3)
  kernels = [jnp.pad(rhs, [*around, side, (0, 0), (0, 0)]) for side in ((0, 1), (1, 0))]
  by_two = geometry._replace(window_strides=(*geometry.window_strides[:-1], 2))
  return by_two.convolve(lhs, jnp.concatenate(kernels, -1)).reshape(*lhs.shape[:-1], -1)


def _flip(rhs):
  """The kernel that maps the gradient of a stride-1 output to the gradient of its image."""
  return jnp.flip(rhs, range(rhs.ndim - 2)).swapaxes(-1, -2)


def _in_pieces(geometry, lhs, rhs):
  """Processes a few images at a time; the transpose adds their kernel gradients.

  The parts interleave, so that a batch sharded over devices needs no communication.
  """
  count = min(len(lhs) // PIECE, PIECES)
  images = lhs.reshape(-1, count, *lhs.shape[1:])
  outs = [geometry.convolve(images[:, i], rhs) for i in range(count)]
  return jnp.stack(outs, 1).reshape(-1, *outs[0].shape[1:])


def _product_of_patches(geometry, lhs, rhs):
  """A matrix product: of pixels if the window is 1x1, else of patches.

  For 1x1 windows XLA's kernel gradient is slow. Patches are for maps smaller than the window,
  where XLA's output and image gradient are about eighty times slower.
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
  """A depthwise convolution as a sum of shifted products, which XLA fuses."""
  return sum(tap * rhs[*at, 0] for at, tap in _taps(geometry, lhs, rhs.shape[:-2]))


def _taps(geometry, lhs, window):
  """Yields (position in the window, the pixels there for all outputs [B, *out, C])."""
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
