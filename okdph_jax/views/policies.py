"""RandAugment and AutoAugment, as in `torchvision.transforms` with default arguments."""

import jax
import jax.numpy as jnp
import numpy as np

from okdph_jax.views import edits
from okdph_jax.views.ops import Op

RANDAUGMENT = (
  "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness",
  "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip

# Each op with its probability and its magnitude, 0 to 9. Cubuk et al., arXiv:1805.09501.
IMAGENET = (
  (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
  (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
  (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
  (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
  (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
  (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
  (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
  (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
  (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
  (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
  (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
  (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
  (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
  (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
  (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
  (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
  (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
  (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
  (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
  (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
  (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
  (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
  (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
  (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
  (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)


def randaugment() -> Op:
  """Two ops in sequence, each drawn from 14, with the magnitude 9 of 0 to 30 and random signs.

  Cubuk et al., arXiv:1909.13719.
  """

  def op(key, image):
    table = tabulate(RANDAUGMENT, [9 / 30] * len(RANDAUGMENT), *image.shape[:2])
    which, sign = jax.random.split(key)
    which = jax.random.randint(which, (2,), 0, len(RANDAUGMENT))
    sign = jax.random.bernoulli(sign, shape=(2,)).astype(int)
    for i in range(2):
      image = edits.apply(image, look_up(table, which[i], sign[i]))
    return image

  return op


def autoaugment() -> Op:
  """One of the 25 pairs of ops found for ImageNet, each op applied with its probability."""
  ops = [op for pair in IMAGENET for op in pair]
  names, probabilities, magnitudes = zip(*ops, strict=True)

  def op(key, image):
    table = tabulate(names, [m / 9 for m in magnitudes], *image.shape[:2])
    which, apply, sign = jax.random.split(key, 3)
    which = 2 * jax.random.randint(which, (), 0, len(IMAGENET)) + jnp.arange(2)
    apply = jax.random.uniform(apply, (2,)) < jnp.array(probabilities)[which]
    sign = jax.random.bernoulli(sign, shape=(2,)).astype(int)
    for i in range(2):
      drawn = look_up(table, which[i], sign[i])
      drawn = jax.tree.map(lambda a, b, on=apply[i]: jnp.where(on, a, b), drawn, edits.Edit())
      image = edits.apply(image, drawn)
    return image

  return op


def tabulate(names, levels, height, width):
  """An `Edit` with leaves [op, sign, ...], of the ops `names` at `levels` in [0, 1]."""
  rows = [
    edits.edit(name, magnitude(name, level, sign, height, width), height, width)
    for name, level in zip(names, levels, strict=True)
    for sign in (-1, 1)
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves).reshape(-1, 2, *leaves[0].shape), *rows)


def look_up(table, op, sign):
  """The `Edit` of one op and sign in the table."""
  return jax.tree.map(lambda leaf: jnp.asarray(leaf)[op, sign], table)


def magnitude(name, level, sign, height, width):
  """The parameter of an op at `level`, 0 to 1, of torchvision's range; None if it has none."""
  if name in ("ShearX", "ShearY"):
    return sign * 0.3 * level
  if name == "TranslateX":
    return sign * int(150 / 331 * width * level)
  if name == "TranslateY":
    return sign * int(150 / 331 * height * level)
  if name == "Rotate":
    return sign * 30 * level
  if name in ("Brightness", "Color", "Contrast", "Sharpness"):
    return 1 + sign * 0.9 * level
  if name == "Posterize":
    return 8 - round(4 * level)
  if name == "Solarize":
    return 255 - 255 * level
  return None
