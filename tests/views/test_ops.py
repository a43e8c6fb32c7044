"""Crop, flip, rotate, cutout and noise: against NumPy, and their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from okdph_jax.views import ops


def each(op, image, n, seed=0):
  """The op on one image under n keys: [n, H, W, C]."""
  keys = jax.random.split(jax.random.key(seed), n)
  return np.asarray(jax.jit(jax.vmap(op, (0, None)))(keys, image))


def picture(*shape, seed=0):
  return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)  # no black


@pytest.mark.parametrize("shape, pad", [((32, 32, 3), 4), ((8, 12, 1), 1)])
def test_crop_cuts_every_offset_of_the_padded_image(shape, pad):
  image = picture(*shape)
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  height, width, _ = shape
  windows = {
    padded[y : y + height, x : x + width].tobytes(): (y, x)
    for y in range(2 * pad + 1)
    for x in range(2 * pad + 1)
  }
  drawn = [windows[crop.tobytes()] for crop in each(ops.crop(pad), image, 4000)]
  offsets, counts = np.unique(drawn, axis=0, return_counts=True)
  assert len(offsets) == (2 * pad + 1) ** 2
  assert_equally_often(counts)


def test_crop_without_padding_is_plain():
  image = picture(8, 8, 1)
  np.testing.assert_array_equal(each(ops.crop(0), image, 2), np.stack([image] * 2))


@pytest.mark.parametrize("pad", [1, 4, 5])
def test_a_window_by_shifts_is_one_by_slicing(pad):
  image, size = picture(12, 16, 3), (12 - 2 * pad, 16 - 2 * pad)
  corners = np.stack(np.mgrid[: 2 * pad + 1, : 2 * pad + 1], -1).reshape(-1, 2)
  shifted, sliced = (
    jax.vmap(cut, (None, None, 0))(size, image, corners)
    for cut in (ops.window_by_shifts, ops.window)
  )
  np.testing.assert_array_equal(shifted, sliced)


def test_no_crop_of_a_batch_is_a_gather_on_a_tpu():
  """Which would become a loop over the images."""
  crop = jax.jit(jax.vmap(ops.crop(1)))
  images = jax.ShapeDtypeStruct((4, 8, 8, 3), np.uint8)
  for platform, gathers in (("cpu", True), ("tpu", False)):
    traced = crop.trace(jax.random.split(jax.random.key(0), 4), images)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("gather" in text or "dynamic_slice" in text) == gathers


def test_flip_mirrors_half_of_the_images():
  image = picture(8, 12, 3)
  out = each(ops.flip(), image, 4000)
  mirrored = (out == image[:, ::-1]).all((1, 2, 3))
  assert (mirrored | (out == image).all((1, 2, 3))).all()
  assert_equally_often([mirrored.sum(), (~mirrored).sum()])


def test_rotate_is_pillows_by_angles_of_a_uniform_grid():
  """A ramp of rows far from the centre tells the angle; Pillow must then agree exactly."""
  image = picture(32, 32, 3)
  out = each(ops.rotate(15), image, 300)
  grid = 15 * ((2 * np.arange(ops.ANGLES) + 1) / ops.ANGLES - 1)
  assert grid[0] > -15 and grid[-1] < 15 and np.allclose(grid, -grid[::-1])
  table = {
    np.asarray(Image.fromarray(image).rotate(angle, Image.NEAREST)).tobytes(): angle
    for angle in grid
  }
  angles = np.array([table[rotated.tobytes()] for rotated in out])  # KeyError: not Pillow's
  keys = jax.random.split(jax.random.key(0), 300)
  drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, ops.ANGLES))(keys)
  for angle, rotated in zip(grid[drawn], out, strict=True):  # near ones give one image
    theirs = np.asarray(Image.fromarray(image).rotate(angle, Image.NEAREST))
    np.testing.assert_array_equal(rotated, theirs)
  assert_equally_often(np.histogram(angles, 10, (-15, 15))[0])


def test_cutout_is_a_clipped_square_about_a_uniform_centre():
  image = picture(32, 32, 3)
  out = each(ops.cutout(16), image, 20000)
  black = out == 0
  assert (black.all(-1) == black.any(-1)).all()  # all channels
  np.testing.assert_array_equal(out[~black], np.broadcast_to(image, out.shape)[~black])
  black = black.any(-1)
  rows, columns = black.any(2), black.any(1)
  np.testing.assert_array_equal(black, rows[:, :, None] & columns[:, None])
  area = black.sum((1, 2))
  assert area.min() == 64 and area.max() == 256
  assert abs(area.mean() - 196) < 1  # standard error 0.42
  # The spec's square, clipped, for each of the 32 centres.
  expected = [np.arange(max(y - 8, 0), min(y + 8, 32)) for y in range(32)]
  expected = [(span[0], len(span)) for span in expected]
  for axis in (rows, columns):
    spans = list(zip(axis.argmax(1), axis.sum(1), strict=True))
    assert_equally_often([spans.count(span) for span in expected])


def test_noise_is_standard_normal_and_fresh():
  image = jnp.full((32, 32, 3), 0.5)
  out = each(ops.noise(), image, 100) - 0.5
  assert abs(out.mean()) < 0.01 and abs(out.std() - 1) < 0.01
  assert abs((out**4).mean() - 3) < 0.1  # a normal's kurtosis
  assert abs(np.corrcoef(out[0].ravel(), out[1].ravel())[0, 1]) < 0.06
  np.testing.assert_allclose(each(ops.noise(0.25), image, 100) - 0.5, out / 4, atol=1e-6)
  draw = jax.vmap(lambda key: jax.random.normal(key, image.shape))
  np.testing.assert_allclose(out, draw(jax.random.split(jax.random.key(0), 100)), atol=1e-6)


def test_any_draws_each_alternative_equally_often():
  paint = [lambda key, image, v=v: jnp.full_like(image, v) for v in (1, 2, 3)]
  out = each(ops.any(*paint), picture(2, 2, 1), 6000)
  assert_equally_often([(out == v).all((1, 2, 3)).sum() for v in (1, 2, 3)])


def test_any_gives_the_alternative_a_key_of_its_own():
  """Else the choice and the flip would be one draw, seen twice."""
  image = picture(4, 4, 1)
  out = each(ops.any(ops.flip(), lambda key, image: image // 2), image, 4000)
  mirrored = (out == image[:, ::-1]).all((1, 2, 3)).sum()
  same = (out == image).all((1, 2, 3)).sum()
  assert_equally_often([mirrored, same])


def test_chain_runs_in_order_under_different_keys():
  image = picture(4, 6, 1)
  key = jax.random.key(7)
  op = ops.chain(ops.crop(2), ops.flip(), ops.crop(2))
  expected = image
  for i, step in enumerate((ops.crop(2), ops.flip(), ops.crop(2))):
    expected = step(jax.random.fold_in(key, i), expected)
  np.testing.assert_array_equal(op(key, image), expected)


def assert_equally_often(counts):
  """Chi-squared, five standard deviations: fails for a wrong distribution, not for luck."""
  counts = np.asarray(counts)
  expected = counts.mean()
  freedom = len(counts) - 1
  assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)
