"""Sharpness: a linear and a quadratic loss, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from okdph_jax.analysis import figures, sharpness

KEY = jax.random.key(3)
SLOPE = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([[2.0]])}
PARAMS = {"a": jnp.array([0.5, 2.0]), "b": jnp.array([[-1.0]])}


def norm(tree):
  return float(jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree))))


def linear(params, scale=1.0):
  return scale * sum(jax.tree.leaves(jax.tree.map(lambda s, w: (s * w).sum(), SLOPE, params)))


def test_of_a_linear_loss_it_is_the_radius_times_the_slope():
  found = sharpness.epsilon_sharpness(linear, PARAMS, 0.05, key=KEY)
  assert found == pytest.approx(0.05 * norm(PARAMS) * norm(SLOPE), rel=1e-3)


def test_adaptive_takes_every_weight_in_units_of_itself():
  found = sharpness.epsilon_sharpness(linear, PARAMS, 0.05, key=KEY, adaptive=True)
  scaled = jax.tree.map(lambda s, w: s * jnp.abs(w), SLOPE, PARAMS)
  assert found == pytest.approx(0.05 * np.sqrt(3) * norm(scaled), rel=1e-3)


def test_at_a_minimum_it_climbs_the_steepest_way():
  curvature = jnp.array([1.0, 10.0])

  def loss(w):
    return (curvature * (w - 1) ** 2).sum() / 2

  found = sharpness.epsilon_sharpness(loss, jnp.ones(2), 0.1, key=KEY, steps=40)
  assert found == pytest.approx(10 * 0.02 / 2, rel=1e-2)  # |w|^2 = 2


def test_a_loss_that_becomes_nan_is_not_flat():
  def loss(w):
    return jnp.where((w > 1.01).any(), jnp.nan, w.sum())

  assert np.isnan(sharpness.epsilon_sharpness(loss, jnp.ones(4), 0.5, key=KEY))
  figures.dots({"sharp": ("sharpness", True)}, {"a": {"sharp": np.nan}, "b": {"sharp": np.inf}})


def test_m_sharpness_lets_every_batch_go_its_own_way():
  """Two batches pull in opposite directions: together flat, each for itself steep."""
  batches = {"sign": jnp.array([[1.0], [-1.0]])}

  def loss(params, batch):
    return linear(params, batch["sign"][0])

  together = sharpness.epsilon_sharpness(loss, PARAMS, 0.05, key=KEY, batches=batches)
  apart = sharpness.m_sharpness(loss, PARAMS, 0.05, key=KEY, batches=batches)
  assert together == pytest.approx(0, abs=1e-5)
  assert apart == pytest.approx(0.05 * norm(PARAMS) * norm(SLOPE), rel=1e-3)


def test_the_expected_sharpness_of_a_quadratic():
  """E L(w + d) - L(w) = sigma^2 sum c w^2 / 2."""
  curvature, w = jnp.array([1.0, 4.0]), jnp.array([2.0, 1.0])
  found = sharpness.expected_sharpness(
    lambda w: (curvature * w**2).sum() / 2, w, 0.5, key=KEY, draws=2000
  )
  want = 0.25 * (4 + 4) / 2
  assert found.low < want < found.high
  assert found.mean == pytest.approx(want, rel=0.15)
