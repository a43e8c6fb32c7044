"""Losses and descent against SciPy, PyTorch's formulas and NumPy written the long way."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from okdph_jax import losses, optimizers

rng = np.random.default_rng(0)
Z, T = rng.normal(size=(2, 3, 5, 7)).astype(np.float32) * 3  # [N, B, K] each
Y = np.array([0, 3, 6, 3, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
  target = np.full((5, 7), smoothing / 6)
  target[np.arange(5), Y] = 1 - smoothing
  want = -(target * log_softmax(Z, -1)).sum(-1).mean(-1)
  np.testing.assert_allclose(
    losses.cross_entropy(Z, jnp.asarray(Y), smoothing=smoothing), want, rtol=1e-5
  )
  if not smoothing:  # the default
    np.testing.assert_allclose(losses.cross_entropy(Z, jnp.asarray(Y)), want, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_weights_by_the_teacher_and_scales_by_the_squared_temperature(temperature):
  p = softmax(T / temperature, -1)
  q = log_softmax(Z / temperature, -1)
  want = temperature**2 * (p * (np.log(p) - q)).sum(-1).mean(-1)
  np.testing.assert_allclose(losses.kl(Z, T, temperature), want, rtol=1e-4)
  np.testing.assert_allclose(losses.kl(Z, Z, temperature), 0, atol=1e-6)


def test_accuracy_keeps_the_leading_axes_and_the_temperature_is_one():
  want = [np.mean(z.argmax(-1) == Y) for z in Z]
  np.testing.assert_allclose(losses.accuracy(jnp.asarray(Z), jnp.asarray(Y)), want)
  np.testing.assert_allclose(losses.kl(Z, T), losses.kl(Z, T, 1.0), rtol=0)


def test_pairs_by_broadcasting():
  pairs = losses.kl(Z[:, None], T[None])
  assert pairs.shape == (3, 3)
  np.testing.assert_allclose(pairs[1, 2], losses.kl(Z[1], T[2]), rtol=1e-5)


def test_consistency_and_accuracy():
  want = ((softmax(Z, -1) - softmax(T, -1)) ** 2).mean((-1, -2))
  np.testing.assert_allclose(losses.consistency(Z, T), want, rtol=1e-5)
  np.testing.assert_allclose(losses.accuracy(Z, Y), (Z.argmax(-1) == Y).mean(-1))


def test_sgd_is_pytorchs():
  """Coupled decay on every leaf, heavy ball, no dampening; the rate changes under way."""
  torch = pytest.importorskip("torch")
  start = rng.normal(size=(4, 3)).astype(np.float32)
  grads = rng.normal(size=(6, 4, 3)).astype(np.float32)
  theirs = torch.nn.Parameter(torch.tensor(start))
  sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.05)
  schedule = optax.piecewise_constant_schedule(0.1, {3: 0.1})
  tx = optimizers.sgd(schedule, momentum=0.9, weight_decay=0.05)
  ours = jnp.asarray(start)
  state = tx.init(ours)
  for i, grad in enumerate(grads):
    sgd.param_groups[0]["lr"] = 0.1 if i < 3 else 0.01
    theirs.grad = torch.tensor(grad)
    sgd.step()
    updates, state = tx.update(jnp.asarray(grad), state, ours)
    ours = optax.apply_updates(ours, updates)
  np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)
