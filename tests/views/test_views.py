"""From uint8 batches to normalised views: shapes, keys, normalisation, devices."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from okdph_jax import views

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # CIFAR-10
SPECS = ("hflip+rot", "any(crop(2)|randaugment, cutout)|noise")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def augment():
  return jax.jit(views.make(SPECS, MEAN, STD))


def test_an_image_draws_from_the_key_of_its_view_and_position(augment, images):
  seen = augment(KEY, images)
  assert seen.shape == (2, 12, 8, 8, 3) and seen.dtype == np.float32
  for v, spec in enumerate(SPECS):
    look = jax.jit(views.view(spec, MEAN, STD))
    for b in (0, 7):
      key = jax.random.fold_in(jax.random.fold_in(KEY, v), b)
      np.testing.assert_allclose(seen[v, b], look(key, images[b]), atol=1e-5)


def test_jit_or_not_and_the_size_of_the_batch_change_nothing(images):
  augment = views.make(("hflip|cutout(3)",), MEAN, STD)
  seen = augment(KEY, images)
  np.testing.assert_allclose(jax.jit(augment)(KEY, images), seen, atol=1e-5)
  np.testing.assert_array_equal(augment(KEY, images[:8]), seen[:, :8])


def test_images_cropped_per_view_keep_to_their_view(images):
  augment = jax.jit(views.make(("hflip", "cutout"), MEAN, STD))
  per_view = np.stack([images, images[::-1]])
  seen = augment(KEY, per_view)
  np.testing.assert_array_equal(seen[0], augment(KEY, images)[0])
  np.testing.assert_array_equal(seen[1], augment(KEY, images[::-1])[1])
  with pytest.raises(ValueError, match="there are 2 views, but 3 crops"):
    augment(KEY, np.stack([images] * 3))


def test_views_of_one_image_and_keys_differ(images):
  augment = jax.jit(views.make(("noise", "noise"), MEAN, STD))
  one, two = augment(KEY, images)
  assert not np.allclose(one, two)
  assert not np.allclose(augment(jax.random.key(1), images)[0], one)


def test_plain_is_the_normalised_image(images):
  expected = (images.astype(np.float64) / 255 - MEAN) / STD
  seen = views.make(("plain",), MEAN, STD)(KEY, images)
  np.testing.assert_allclose(seen[0], expected, atol=1e-5)


def test_black_is_black_before_normalising():
  black = views.make(("plain",), MEAN, STD)(KEY, np.zeros((1, 1, 1, 3), np.uint8))
  np.testing.assert_allclose(np.ravel(black), (-2.4291, -2.4183, -2.2214), atol=5e-5)
  white = np.full((1, 8, 8, 3), 255, np.uint8)
  hole = views.make(("cutout(16)",), MEAN, STD)(KEY, white)
  assert {tuple(p) for p in np.asarray(hole).reshape(-1, 3).round(4)} <= {
    tuple(np.ravel(black).round(4)),
    tuple(((1 - np.float32(MEAN)) / np.float32(STD)).round(4)),
  }


def test_any_draws_for_each_view_by_itself():
  white = np.full((4000, 2, 2, 1), 255, np.uint8)
  augment = jax.jit(views.make(("any(plain, cutout(4))",) * 2, (0,), (1,)))
  one, two = np.asarray(augment(KEY, white)).max((2, 3, 4)) > 0  # cutout(4) leaves no pixel
  counts = np.histogram2d(one, two, 2)[0]
  np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(750))


def test_noise_is_added_to_the_normalised_image():
  gray = np.full((64, 8, 8, 3), 128, np.uint8)
  plain, noisy = jax.jit(views.make(("plain", "plain|noise"), MEAN, STD))(KEY, gray)
  noise = np.asarray(noisy - plain)
  assert np.abs(noise.mean((0, 1, 2))).max() < 0.06
  assert np.abs(noise.std((0, 1, 2)) - 1).max() < 0.05


def test_one_channel_works_as_three():
  image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
  seen = jax.jit(views.make(("crop(1)|rotate(15)|cutout(3)", "augment"), (0.3,), (0.4,)))(
    KEY, image
  )
  assert seen.shape == (2, 4, 8, 8, 1) and np.isfinite(seen).all()


def test_what_does_not_fit_is_refused(images):
  with pytest.raises(ValueError, match="tuple of specs"):
    views.make("hflip", MEAN, STD)
  with pytest.raises(ValueError, match="unknown op 'hflop'"):
    views.make(("hflop",), MEAN, STD)
  with pytest.raises(ValueError, match="1 and 1 channels, images have 3"):
    views.make(("plain",), (0.5,), (0.5,))(KEY, images)
  with pytest.raises(ValueError, match="3 and 1 channels, images have 3"):
    views.make(("plain",), (0.5,) * 3, (0.5,))(KEY, images)


def test_a_batch_on_two_devices_stays_there():
  """Other devices, same views, and nothing sent between them."""
  script = """
import jax, numpy as np
from okdph_jax.runtime import host
from okdph_jax import views
host.configure(2)
image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
over = jax.NamedSharding(host.mesh(), jax.P("data"))
augment = jax.jit(views.make(("cutout", "augment"), (0.5,) * 3, (0.2,) * 3))
split = augment.lower(jax.random.key(0), jax.device_put(image, over)).compile()
seen = split(jax.random.key(0), jax.device_put(image, over))
assert len(seen.sharding.device_set) == 2 and tuple(seen.sharding.spec)[:2] == (None, "data")
assert not any(word in split.as_text() for word in ("all-", "collective-", "reduce-scatter"))
np.testing.assert_allclose(seen, augment(jax.random.key(0), image), atol=1e-5)
"""
  environment = {"JAX_PLATFORMS": "cpu", "PATH": ""}
  subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize(
  "spec, says",
  [
    ("crop(100000000)", r"crop\(100000000\) can crop images of 8x6 pixels to nothing"),
    ("crop(6)", r"crop\(6\)"),
    ("flip|cutout(1000)", r"cutout\(1000\) would erase images of 8x6 pixels"),
  ],
)
def test_views_that_do_not_fit_the_images_are_refused_without_computing(spec, says):
  with pytest.raises(ValueError, match=says) as error:
    views.check(("plain", spec), (8, 6, 1))
  assert "\n" not in str(error.value)
  views.check(("crop(5)|cutout(15)",), (8, 6, 1))
