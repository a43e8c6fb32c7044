"""Pillow's pixel ops on uint8 images, expressed as parameters of three kernels.

Every op is a warp, a tone curve and a blend, of which at most one changes the image. So a batch
in which each image has another op runs three kernels; `lax.switch` under `vmap` would compute
all fourteen ops for every image.

Parameters are computed on the host in double precision, so the results equal Pillow's bit for
bit; AutoContrast and the blends may differ by one level.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

AUTOCONTRAST, EQUALIZE = 1, 2  # tone curves that depend on the image
BLACK, LUMA, MEAN, SMOOTH = range(4)  # the other image of a blend

IDENTITY = np.array([1 << 16, 0, 1 << 15, 0, 1 << 16, 1 << 15], np.int32)  # see `fixed`


class Edit(NamedTuple):
  """The parameters of one op; those of several ops are stacked along leading axes."""

  matrix: ArrayLike = IDENTITY  # int32 [6], an affine map, see `fixed`
  mask: ArrayLike = np.int32(255)  # the bits that Posterize keeps
  threshold: ArrayLike = np.int32(256)  # Solarize inverts levels from here on
  curve: ArrayLike = np.int32(0)  # AUTOCONTRAST, EQUALIZE, or 0 for neither
  start: ArrayLike = np.int32(BLACK)  # BLACK, LUMA, MEAN or SMOOTH, see `blend`
  factor: ArrayLike = np.float32(1)  # of the blend; 1 leaves the image unchanged


def edit(name, value, height, width):
  """Pillow's op `name` with the parameter `value`, for images of height x width.

  value: shears in input pixels per output pixel, from the corner (0, 0); translations in
  pixels; rotations in degrees, counter-clockwise about the centre; blends as the factor of
  ImageEnhance; Posterize as the bits to keep; Solarize as the threshold; None for the others.
  """
  if name == "Identity":
    return Edit()
  if name == "ShearX":
    return Edit(matrix=fixed(1, value, 0, 0, 1, 0))
  if name == "ShearY":
    return Edit(matrix=fixed(1, 0, 0, value, 1, 0))
  if name == "TranslateX":
    return Edit(matrix=fixed(1, 0, -value, 0, 1, 0))
  if name == "TranslateY":
    return Edit(matrix=fixed(1, 0, 0, 0, 1, -value))
  if name == "Rotate":
    return Edit(matrix=rotation(value, height, width))
  if name == "Brightness":
    return Edit(start=np.int32(BLACK), factor=np.float32(value))
  if name == "Color":
    return Edit(start=np.int32(LUMA), factor=np.float32(value))
  if name == "Contrast":
    return Edit(start=np.int32(MEAN), factor=np.float32(value))
  if name == "Sharpness":
    return Edit(start=np.int32(SMOOTH), factor=np.float32(value))
  if name == "Posterize":
    return Edit(mask=np.int32(256 - 2 ** (8 - value)))
  if name == "Solarize":
    return Edit(threshold=np.int32(math.ceil(value)))
  if name == "Invert":
    return Edit(threshold=np.int32(0))
  if name == "AutoContrast":
    return Edit(curve=np.int32(AUTOCONTRAST))
  if name == "Equalize":
    return Edit(curve=np.int32(EQUALIZE))
  raise ValueError(f"unknown pixel op {name!r}")


def apply(image, edit):
  """Applies an `Edit` to an image, uint8 [H, W, C] with 1 or 3 channels."""
  image = materialized(warp(image, edit.matrix))
  image = materialized(tone(image, edit.mask, edit.threshold, edit.curve))
  return materialized(blend(image, edit.start, edit.factor))


# XLA would fuse a gather into all its consumers and compute it again for each. XLA:CPU keeps
# the barrier only with `host.compiler_options()`.
materialized = jax.lax.optimization_barrier


def fixed(*matrix):
  """An affine map in Pillow's 16.16 fixed point: int32 [..., 6].

  The output pixel (x, y) reads the input at (a0 x + a1 y + a2, a3 x + a4 y + a5); half a pixel
  is added, because coordinates refer to centres of pixels.
  """
  a = np.stack(np.broadcast_arrays(*map(np.float64, matrix)), -1)
  a[..., 2] += (a[..., 0] + a[..., 1]) / 2
  a[..., 5] += (a[..., 3] + a[..., 4]) / 2
  return np.floor(a * 65536 + 0.5).astype(np.int32)


def rotation(degrees, height, width):
  """The map `fixed` of rotations about the centre, counter-clockwise; one per entry."""
  angle = np.radians(degrees)
  cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
  x, y = width / 2, height / 2
  return fixed(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def warp(image, matrix):
  """Nearest neighbour, black outside. image: uint8 [H, W, C]; matrix: int32 [6] of `fixed`."""
  height, width, channels = image.shape
  x, y = jnp.arange(width), jnp.arange(height)[:, None]
  u = (matrix[0] * x + matrix[1] * y + matrix[2]) >> 16  # [H, W]
  v = (matrix[3] * x + matrix[4] * y + matrix[5]) >> 16
  inside = (0 <= u) & (u < width) & (0 <= v) & (v < height)
  pixels = image.reshape(-1, channels)[jnp.where(inside, v * width + u, 0)]
  return jnp.where(inside[..., None], pixels, jnp.uint8(0))


def tone(image, mask, threshold, curve):
  """Maps the levels of each channel by a table.

  image: uint8 [H, W, C]; mask, threshold, curve: int32 scalars as in `Edit`.
  """
  levels = jnp.arange(256)
  table = levels & mask
  table = jnp.where(table < threshold, table, 255 - table)
  # Both curves are fractions of integers; they share the division, which is slow on a CPU.
  over, under = jax.tree.map(
    lambda *of: jnp.where(curve == AUTOCONTRAST, *of), autocontrast(image), equalize(image)
  )
  curved = (over // jnp.maximum(under, 1)).clip(0, 255)  # [C, 256]
  table = jnp.where((curve > 0) & (under > 0), curved, table).astype(jnp.uint8)
  return materialized(table).reshape(-1)[image + 256 * jnp.arange(image.shape[-1])]


def autocontrast(image):
  """Maps the lowest level to 0, the highest to 255: numerators [C, 256], denominator [C, 1]."""
  image = image.astype(jnp.int32)
  low, high = image.min((0, 1))[:, None], image.max((0, 1))[:, None]
  return 255 * (jnp.arange(256) - low), high - low


def equalize(image):
  """Equalizes the histogram: numerators [C, 256], denominator [C, 1], 0 where it cannot."""
  count = histogram(image)
  below = jnp.cumsum(count, 1) - count
  last = count.shape[1] - 1 - jnp.argmax(count[:, ::-1] > 0, 1)
  top = jnp.take_along_axis(count, last[:, None], 1)
  step = (count.sum(1, keepdims=True) - top) // 255
  return step // 2 + below, step


def histogram(image):
  """The number of pixels of each level: uint8 [H, W, C] -> int32 [C, 256]."""
  channels = image.shape[-1]
  count = jnp.zeros((channels, 256), jnp.int32)
  return count.at[jnp.arange(channels), image].add(1)


def blend(image, start, factor):
  """other + factor (image - other), where `start` chooses the other image.

  image: uint8 [H, W, C]; start: int32, BLACK, LUMA, MEAN or SMOOTH; factor: float32.
  """
  x = image.astype(jnp.int32)
  gray = luma(x)  # [H, W, 1]
  mean = (2 * gray.sum() + gray.size) // (2 * gray.size)  # rounded half up
  start = jnp.select(
    [start == LUMA, start == MEAN, start == SMOOTH], [gray, mean, smooth(x)], 0
  )
  mixed = start + factor * (x - start)
  return mixed.clip(0, 255).astype(jnp.uint8)  # truncates, as Pillow does


def luma(x):
  """Luminance by ITU-R 601, rounded as by Pillow: int32 [H, W, C] -> [H, W, 1]."""
  if x.shape[-1] == 1:
    return x
  if x.shape[-1] != 3:
    raise ValueError(
      f"images have {x.shape[-1]} channels; RandAugment and AutoAugment need 1 or 3"
    )
  return (19595 * x[..., :1] + 38470 * x[..., 1:2] + 7471 * x[..., 2:] + 32768) >> 16


def smooth(x):
  """Pillow's SMOOTH filter, which leaves the border unchanged: int32 [H, W, C]."""
  rows = x[:-2] + x[1:-1] + x[2:]
  around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
  return x.at[1:-1, 1:-1].set((2 * around + 13) // 26)  # / 13, rounded half up
