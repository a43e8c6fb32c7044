"""Every pixel op against Pillow's, on the same parameters."""

import math

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from okdph_jax.views import edits

IMAGES = 20
VALUES = {  # as the policies use them, and beyond: both signs and the ends of the ranges
  "Identity": (None,),
  "ShearX": (0.09, -0.09, 1 / 6, -1 / 6, 0.3),
  "ShearY": (0.09, -0.09, 1 / 6, -1 / 6, 0.3),
  "TranslateX": (4, -4, 1, 13),
  "TranslateY": (4, -4, 1, 13),
  "Rotate": (9, -9, 10, -10, 26 + 2 / 3, -26 - 2 / 3, 30, -30, 0.01, 14.99),
  "Brightness": (0, 0.73, 1, 1.27, 1.9),
  "Color": (0, 0.2, 0.6, 0.73, 1.27, 1.9),
  "Contrast": (0, 0.2, 0.73, 1.27, 1.8),
  "Sharpness": (0, 0.3, 0.73, 1.27, 1.7),
  "Posterize": (4, 5, 6, 7, 8),
  "Solarize": (0, 28 + 1 / 3, 56 + 2 / 3, 113 + 1 / 3, 170, 178.5, 255),
  "Invert": (None,),
  "AutoContrast": (None,),
  "Equalize": (None,),
}
WITHIN_ONE = ("AutoContrast", "Brightness", "Color", "Contrast", "Sharpness")


def pillow(image, name, value):
  """The oracle, as torchvision calls it."""
  affine = {
    "ShearX": lambda: (1, math.tan(math.atan(value)), 0, 0, 1, 0),
    "ShearY": lambda: (1, 0, 0, math.tan(math.atan(value)), 1, 0),
    "TranslateX": lambda: (1, 0, -value, 0, 1, 0),
    "TranslateY": lambda: (1, 0, 0, 0, 1, -value),
  }
  if name in affine:
    return image.transform(image.size, Image.AFFINE, affine[name](), Image.NEAREST)
  if name == "Identity":
    return image
  if name == "Rotate":
    return image.rotate(value, Image.NEAREST)
  if name in ("Brightness", "Color", "Contrast", "Sharpness"):
    return getattr(ImageEnhance, name)(image).enhance(value)
  args = () if value is None else (value,)
  return getattr(ImageOps, name.lower())(image, *args)


def pictures(shape, seed=0):
  """Noise; smooth scenes of few and many levels; flat, two-level and narrow histograms."""
  rng = np.random.default_rng(seed)
  height, width, channels = shape
  y, x = np.mgrid[:height, :width] / max(height, width)
  images = []
  for i in range(IMAGES):
    waves = sum(
      rng.uniform(0.2, 1) * np.sin(rng.uniform(0, 20, channels) + p[..., None] * k)
      for p, k in ((x, rng.uniform(1, 30)), (y, rng.uniform(1, 30)), (x * y, 9.0))
    )
    scene = np.clip(128 + rng.uniform(5, 90) * waves, 0, 255)
    flat = np.full(shape, rng.integers(256))
    two = np.where(rng.random(shape) < 0.1, *rng.integers(0, 256, 2))
    noise = rng.integers(0, 256, shape)
    near = flat - (rng.random(shape) < 0.5)  # two levels side by side
    images.append((noise, scene, scene + rng.normal(0, 8, shape), flat, two, near)[i % 6])
  return np.stack(images).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=[(32, 32, 3), (32, 32, 1), (24, 40, 3), (8, 8, 1)])
def images(request):
  return pictures(request.param)


@pytest.fixture(scope="module")
def apply():
  return jax.jit(jax.vmap(edits.apply, (0, None)))  # the op is data: one program for all


@pytest.mark.parametrize("name", VALUES)
def test_equals_pillow(apply, images, name):
  height, width, channels = images.shape[1:]
  for value in VALUES[name]:
    ours = np.asarray(apply(images, edits.edit(name, value, height, width)))
    assert ours.dtype == np.uint8
    for image, our in zip(images, ours, strict=True):
      picture = Image.fromarray(image[..., 0] if channels == 1 else image)
      theirs = np.asarray(pillow(picture, name, value)).reshape(image.shape)
      distance = np.abs(our.astype(int) - theirs).max()
      exact = name not in WITHIN_ONE or value in (0, 1)  # where a blend starts, where it ends
      assert distance <= (not exact), (value, distance)


def test_the_oracle_tells_the_ops_apart():
  """Else parity would be empty: on a scene every op but Identity changes something."""
  scene = Image.fromarray(pictures((32, 32, 3))[1])
  for name, values in VALUES.items():
    changed = np.asarray(pillow(scene, name, values[0])) != np.asarray(scene)
    assert changed.any() == (name != "Identity"), name


def test_rotations_of_many_angles_read_pillows_pixels():
  angles = np.random.default_rng(1).uniform(-15, 15, 500)
  image = np.arange(32 * 32).reshape(32, 32, 1) % 251
  image = np.concatenate([image, image // 4, image * 7 % 256], -1).astype(np.uint8)
  warp = jax.jit(jax.vmap(edits.warp, (None, 0)))
  ours = np.asarray(warp(image, edits.rotation(angles, 32, 32)))
  theirs = [np.asarray(Image.fromarray(image).rotate(a, Image.NEAREST)) for a in angles]
  np.testing.assert_array_equal(ours, np.stack(theirs))


def test_large_images_do_not_overflow():
  image = np.random.default_rng(2).integers(0, 256, (224, 224, 3), dtype=np.uint8)
  for name, value in (
    ("Rotate", -26.7),
    ("ShearY", 0.3),
    ("Contrast", 1.8),
    ("Equalize", None),
  ):
    ours = jax.jit(edits.apply)(image, edits.edit(name, value, 224, 224))
    theirs = np.asarray(pillow(Image.fromarray(image), name, value))
    assert np.abs(np.asarray(ours).astype(int) - theirs).max() <= (name in WITHIN_ONE)


def test_an_unknown_op_is_named():
  with pytest.raises(ValueError, match="Posterise"):
    edits.edit("Posterise", 4, 32, 32)


def test_images_of_two_channels_are_refused():
  with pytest.raises(
    ValueError, match="have 2 channels; RandAugment and AutoAugment need 1 or 3"
  ):
    edits.apply(np.zeros((4, 4, 2), np.uint8), edits.Edit())


def test_the_luma_of_a_colour_at_its_rounding():
  """19595 r + 38470 g + 7471 b + 32768 is one below a multiple of 65536."""
  colour = np.full((1, 1, 3), (0, 62, 229), np.uint8)
  want = np.asarray(Image.fromarray(colour).convert("L"))[0, 0]
  assert edits.luma(colour.astype(np.int32))[0, 0, 0] == want
