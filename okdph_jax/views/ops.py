"""Ops of views: each function returns an op `(key, image) -> image` for one image.

Pixel ops map uint8 [H, W, C] to the same shape and type; `noise` is for normalised images.
`randaugment` and `autoaugment` are in `policies`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

from okdph_jax.errors import shown
from okdph_jax.views import edits

Image = Shaped[Array, "H W C"]
Op = Callable[[Key[Array, ""], Image], Image]

ANGLES = 4096  # `rotate` draws one of this many angles


def chain(*ops: Op) -> Op:
  """Applies several ops in order; op i gets the key `fold_in(key, i)`."""

  def op(key, image):
    for i, step in enumerate(ops):
      image = step(jax.random.fold_in(key, i), image)
    return image

  return op


def plain() -> Op:
  """The image unchanged."""
  return lambda key, image: image


def crop(pad: int) -> Op:
  """Pads every side with `pad` black pixels and crops to the original size at random."""
  check_integer("pad", pad, least=0)

  def op(key, image):
    if pad >= min(image.shape[:2]):
      raise ValueError(
        f"crop({pad}) can crop images of {size_of(image)} to nothing but padding; choose a "
        "smaller pad"
      )
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    corner = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    size = image.shape[:2]
    return jax.lax.platform_dependent(
      padded,
      corner,
      tpu=functools.partial(window_by_shifts, size),
      default=functools.partial(window, size),
    )

  return op


def window(size: tuple[int, int], image: Image, corner: Int[Array, " 2"]) -> Image:
  """The part of an image of the given height and width that begins at `corner`, (y, x)."""
  return jax.lax.dynamic_slice(image, (*corner, 0), (*size, image.shape[2]))


def window_by_shifts(size: tuple[int, int], image: Image, corner: Int[Array, " 2"]) -> Image:
  """`window`, by moving the image up and left, a power of two at a time.

  Of `window` under `vmap` XLA:TPU makes a loop over the images.
  """
  for axis in range(2):
    for bit in range((image.shape[axis] - size[axis]).bit_length()):
      moved = jnp.roll(image, -(2**bit), axis)
      image = jnp.where(corner[axis] >> bit & 1, moved, image)
  return image[: size[0], : size[1]]


def flip() -> Op:
  """Flips the image horizontally with probability 1/2."""

  def op(key, image):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

  return op


def rotate(degrees: float) -> Op:
  """Rotates about the centre by an angle from U(-degrees, degrees), black outside.

  Nearest neighbour, as Pillow's. The angle is one of 4096, whose matrices are computed in
  advance: in float32, on the device, rounding would sometimes choose a neighbouring pixel.
  """
  check_number("degrees", degrees, most=180)
  angles = degrees * ((2 * np.arange(ANGLES) + 1) / ANGLES - 1)

  def op(key, image):
    matrices = jnp.asarray(edits.rotation(angles, *image.shape[:2]))
    return edits.warp(image, matrices[jax.random.randint(key, (), 0, ANGLES)])

  return op


def cutout(size: int) -> Op:
  """Sets a square of size x size around a random pixel to black, clipped at the border.

  DeVries and Taylor, arXiv:1708.04552. Black is 0 before the normalisation, not the mean.
  """
  check_integer("size", size, least=1)

  def op(key, image):
    height, width, _ = image.shape
    if size > 2 * max(height, width):
      raise ValueError(
        f"cutout({size}) would erase images of {size_of(image)}; choose a smaller size"
      )
    y, x = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    rows = (np.arange(height) >= y) & (np.arange(height) < y + size)
    columns = (np.arange(width) >= x) & (np.arange(width) < x + size)
    return jnp.where((rows[:, None] & columns)[..., None], jnp.uint8(0), image)

  return op


def noise(std: float = 1.0) -> Op:
  """Adds N(0, std) to every pixel and channel of the normalised image (paper, Eq. 9)."""
  check_number("std", std, most=1000)
  return lambda key, image: image + std * jax.random.normal(key, image.shape, image.dtype)


def any(*alternatives: Op) -> Op:
  """Applies one of several ops, drawn for each image with equal probability."""
  if not alternatives:
    raise ValueError("any() needs at least one spec")

  def op(key, image):
    choose, key = jax.random.split(key)
    i = jax.random.randint(choose, (), 0, len(alternatives))
    return jax.lax.switch(i, alternatives, key, image)

  return op


def check_integer(name: str, value: int, least: int) -> None:
  """Raises ValueError, in one line, unless `value` is an int of at least `least`."""
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ValueError(f"{name} must be a whole number >= {least}, not {shown(value)}")


def check_number(name: str, value: float, most: float) -> None:
  """Raises ValueError, in one line, unless `value` is a number from 0 to `most`."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
    raise ValueError(f"{name} must be a number from 0 to {most}, not {shown(value)}")


def size_of(image: Image) -> str:
  """The size of an image in words."""
  height, width, _ = image.shape
  return f"{height}x{width} pixels"
