"""View ops: factories that return `(key, image) -> image`, one image at a time.

Pixel ops map uint8 [H, W, C] to the same; `noise` works on the normalised float image.
The policies `randaugment` and `autoaugment` are in `policies`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from okdph_jax.views import edits

ANGLES = 4096  # `rotate` draws one of so many: their matrices are exact, computed beforehand


def chain(*ops):
  """Several ops as one, in order; op i gets the key `fold_in(key, i)`."""

  def op(key, image):
    for i, each in enumerate(ops):
      image = each(jax.random.fold_in(key, i), image)
    return image

  return op


def plain():
  """The image as it is."""
  return lambda key, image: image


def crop(pad):
  """Pads every side with `pad` black pixels and cuts the old size out at a random place."""
  whole("pad", pad, least=0)

  def op(key, image):
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    y, x = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (y, x, 0), image.shape)

  return op


def flip():
  """Mirrors left and right with probability 1/2."""

  def op(key, image):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

  return op


def rotate(degrees):
  """Rotates about the centre by an angle from U(-degrees, degrees); black comes in.

  Nearest neighbour, equal to Pillow's. The angle is drawn from a grid of 4096: a matrix
  made in float32 on the device would now and then read a neighbouring pixel.
  """
  if not isinstance(degrees, int | float):
    raise ValueError(f"degrees is a number, not {degrees!r}")
  angles = degrees * ((2 * np.arange(ANGLES) + 1) / ANGLES - 1)

  def op(key, image):
    matrices = jnp.asarray(edits.rotation(angles, *image.shape[:2]))
    return edits.warp(image, matrices[jax.random.randint(key, (), 0, ANGLES)])

  return op


def cutout(size):
  """Blackens a square of size x size about a random pixel, clipped at the border.

  DeVries and Taylor, arXiv:1708.04552. Black is 0 before normalising, not the mean.
  """
  whole("size", size, least=1)

  def op(key, image):
    height, width, _ = image.shape
    y, x = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    rows = (np.arange(height) >= y) & (np.arange(height) < y + size)
    columns = (np.arange(width) >= x) & (np.arange(width) < x + size)
    return jnp.where((rows[:, None] & columns)[..., None], jnp.uint8(0), image)

  return op


def noise(std=1.0):
  """Adds N(0, std) to every pixel and channel of the normalised image (the paper's Eq. 9)."""
  if not isinstance(std, int | float) or std < 0:
    raise ValueError(f"std is a number >= 0, not {std!r}")
  return lambda key, image: image + std * jax.random.normal(key, image.shape, image.dtype)


def any(*alternatives):
  """One of several ops, drawn anew for each image with equal probability."""
  if not alternatives:
    raise ValueError("any() needs at least one view")

  def op(key, image):
    choose, key = jax.random.split(key)
    i = jax.random.randint(choose, (), 0, len(alternatives))
    return jax.lax.switch(i, alternatives, key, image)

  return op


def whole(name, value, least):
  if not isinstance(value, int) or value < least:
    raise ValueError(f"{name} is a whole number >= {least}, not {value!r}")
