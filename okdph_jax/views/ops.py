"""View ops: factories that return `(key, image) -> image`, one image at a time.

Pixel ops map uint8 [H, W, C] to the same; `noise` works on the normalised float image.
The policies `randaugment` and `autoaugment` are in `policies`.
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

ANGLES = 4096  # `rotate` draws one of these many, whose matrices are computed in advance


def chain(*ops: Op) -> Op:
  """Several ops as one, in order; op i gets the key `fold_in(key, i)`."""

  def op(key, image):
    for i, step in enumerate(ops):
      image = step(jax.random.fold_in(key, i), image)
    return image

  return op


def plain() -> Op:
  """The image unchanged."""
  return lambda key, image: image


def crop(pad: int) -> Op:
  """Pads every side with `pad` black pixels and crops to the old size at a random place."""
  check_integer("pad", pad, least=0)

  def op(key, image):
    if pad >= min(image.shape[:2]):
      raise ValueError(
        f"crop({pad}) can leave nothing of images of {size_of(image)}; give a smaller pad"
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
  """Mirrors left and right with probability 1/2."""

  def op(key, image):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

  return op


def rotate(degrees: float) -> Op:
  """Rotates about the centre by an angle from U(-degrees, degrees), black outside.

  Nearest neighbour, equal to Pillow's. The angle is drawn from a grid of 4096: a matrix
  computed in float32 on the device would sometimes read a neighbouring pixel.
  """
  check_number("degrees", degrees, most=180)
  angles = degrees * ((2 * np.arange(ANGLES) + 1) / ANGLES - 1)

  def op(key, image):
    matrices = jnp.asarray(edits.rotation(angles, *image.shape[:2]))
    return edits.warp(image, matrices[jax.random.randint(key, (), 0, ANGLES)])

  return op


def cutout(size: int) -> Op:
  """Blackens a square of size x size about a random pixel, clipped at the border.

  DeVries and Taylor, arXiv:1708.04552. Black is 0 before normalising, not the mean.
  """
  check_integer("size", size, least=1)

  def op(key, image):
    height, width, _ = image.shape
    if size > 2 * max(height, width):
      raise ValueError(
        f"cutout({size}) blackens the whole of images of {size_of(image)}; give a smaller size"
      )
    y, x = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    rows = (np.arange(height) >= y) & (np.arange(height) < y + size)
    columns = (np.arange(width) >= x) & (np.arange(width) < x + size)
    return jnp.where((rows[:, None] & columns)[..., None], jnp.uint8(0), image)

  return op


def noise(std: float = 1.0) -> Op:
  """Adds N(0, std) to every pixel and channel of the normalised image (the paper's Eq. 9)."""
  check_number("std", std, most=1000)
  return lambda key, image: image + std * jax.random.normal(key, image.shape, image.dtype)


def any(*alternatives: Op) -> Op:
  """One of several ops, drawn for each image with equal probability."""
  if not alternatives:
    raise ValueError("any() needs at least one view")

  def op(key, image):
    choose, key = jax.random.split(key)
    i = jax.random.randint(choose, (), 0, len(alternatives))
    return jax.lax.switch(i, alternatives, key, image)

  return op


def check_integer(name: str, value: int, least: int) -> None:
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ValueError(f"{name} is a whole number >= {least}, not {shown(value)}")


def check_number(name: str, value: float, most: float) -> None:
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
    raise ValueError(f"{name} is a number from 0 to {most}, not {shown(value)}")


def size_of(image: Image) -> str:
  height, width, _ = image.shape
  return f"{height}x{width} pixels"
