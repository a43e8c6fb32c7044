"""The Hessian: quadratics with a known spectrum, and a tiny network's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from okdph_jax.analysis import hessian
from okdph_jax.losses import cross_entropy

KEY = jax.random.key(0)


def quadratic(eigenvalues, seed=0):
  """(loss, params) whose Hessian has these eigenvalues in a random basis; two leaves."""
  d = len(eigenvalues)
  q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))
  matrix = jnp.asarray(q @ np.diag(eigenvalues) @ q.T, jnp.float32)

  def loss(params):
    w, _ = ravel_pytree(params)
    return w @ matrix @ w / 2

  return loss, {"a": jnp.ones(d // 2), "b": jnp.ones((d - d // 2, 1))}


def network():
  """(loss(params, batch), params, batches [3, 5, ...]) of a smooth network of two layers."""
  rng = np.random.default_rng(1)
  batches = {
    "image": rng.normal(size=(3, 5, 4)).astype(np.float32),
    "label": rng.integers(0, 3, (3, 5)),
  }
  params = {
    "first": rng.normal(size=(4, 6)).astype(np.float32),
    "last": rng.normal(size=(6, 3)).astype(np.float32),
  }

  def loss(params, batch):
    hidden = jnp.tanh(batch["image"] @ params["first"])
    return cross_entropy(hidden @ params["last"], batch["label"])

  return loss, params, batches


def dense(loss, params, batches):
  """The whole Hessian of the mean loss, as JAX computes it: [d, d]."""
  flat, unravel = ravel_pytree(params)
  losses = jax.vmap(loss, (None, 0))
  return np.asarray(jax.hessian(lambda w: losses(unravel(w), batches).mean())(flat))


def test_top_eigenvalues_of_a_quadratic():
  spectrum = np.concatenate([[50.0, 20.0, 20.0, 7.0, -30.0], np.linspace(-1, 1, 45)])
  loss, params = quadratic(spectrum)
  found = hessian.top_eigenvalues(loss, params, 4, key=KEY, iterations=50, tolerance=1e-6)
  np.testing.assert_allclose(found.values, [50, 20, 20, 7], rtol=1e-4)
  assert (found.residuals < 1e-2).all()


def test_more_eigenvalues_than_iterations_and_fewer_than_asked_for():
  spectrum = np.arange(1.0, 13.0)
  loss, params = quadratic(spectrum)
  found = hessian.top_eigenvalues(loss, params, 12, key=KEY, iterations=5)
  np.testing.assert_allclose(found.values, spectrum[::-1], rtol=1e-3)
  loss, params = quadratic(np.zeros(12))  # an invariant subspace after one product
  assert hessian.top_eigenvalues(loss, params, 3, key=KEY).values.tolist() == [0.0]


def test_lanczos_stops_once_the_eigenvalues_stand():
  loss, params = quadratic(np.concatenate([[100.0, 10.0], np.linspace(0, 0.1, 98)]))
  found = hessian.top_eigenvalues(loss, params, 2, key=KEY)
  assert found.products < 15
  np.testing.assert_allclose(found.values, [100, 10], rtol=1e-3)


def test_an_invariant_subspace_ends_lanczos():
  loss, params = quadratic(np.full(12, 3.0))
  found = hessian.top_eigenvalues(loss, params, 1, key=KEY)
  assert found.products == 1
  np.testing.assert_allclose(found.values, [3], rtol=1e-5)


def test_a_network_against_its_dense_hessian():
  loss, params, batches = network()
  matrix = dense(loss, params, batches)
  want = np.linalg.eigvalsh(matrix)[::-1]
  found = hessian.top_eigenvalues(loss, params, 3, key=KEY, batches=batches, tolerance=1e-5)
  np.testing.assert_allclose(found.values, want[:3], rtol=1e-4)

  traced = hessian.trace(loss, params, key=KEY, batches=batches, probes=400)
  assert abs(traced.trace - matrix.trace()) < 4 * traced.standard_error
  off_diagonal = matrix - np.diag(np.diag(matrix))
  want = np.sqrt(2 * (off_diagonal**2).sum() / 400)  # of Hutchinson's with random signs
  assert traced.standard_error == pytest.approx(want, rel=0.2)
  sizes, ends = zip(*((w.size, (w**2).sum()) for w in params.values()), strict=True)
  blocks = np.split(np.diag(matrix), np.cumsum(sizes)[:-1])
  normalized = sum(n * b.mean() for n, b in zip(ends, blocks, strict=True))
  assert abs(traced.normalized - normalized) < 4 * traced.normalized_standard_error


def test_the_trace_of_a_diagonal_hessian_is_exact():
  traced = hessian.trace(
    lambda p: 2 * (p["w"] ** 2).sum(), {"w": jnp.ones(7)}, key=KEY, probes=3
  )
  assert traced.trace == pytest.approx(28)
  assert traced.standard_error == pytest.approx(0, abs=1e-6)
  assert traced.normalized == pytest.approx(28)  # |w|^2 = d


def test_the_spectral_density_has_the_moments_of_the_spectrum():
  spectrum = np.concatenate([np.linspace(0, 1, 95), [10, 11, 12, 13, 14]])
  loss, params = quadratic(spectrum)
  found = hessian.spectral_density(loss, params, key=KEY, probes=30, iterations=30)
  np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-6)
  mean = (found.nodes * found.weights).sum(1).mean()
  assert mean == pytest.approx(spectrum.mean(), rel=0.15)
  x = np.linspace(-5, 20, 1000)
  curve = hessian.density(found, x, 0.3)
  assert np.trapezoid(curve, x) == pytest.approx(1, abs=1e-3)
  outliers = x > 5
  assert np.trapezoid(curve[outliers], x[outliers]) == pytest.approx(0.05, abs=0.02)
