"""Our batch normalisation against Flax's, values and every derivative."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from okdph_jax.nn import batch_norm

EPSILON = 1e-5


def flax(x, scale, bias):
  norm = nn.BatchNorm(use_running_average=False, epsilon=EPSILON, momentum=0.0)
  variables = {"params": {"scale": scale, "bias": bias}}
  variables["batch_stats"] = {"mean": bias, "var": bias}
  y, new = norm.apply(variables, x, mutable=["batch_stats"])
  return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]


def ours(x, scale, bias):
  return batch_norm.normalize(x, scale, bias, EPSILON)


def tensors():
  keys = jax.random.split(jax.random.key(0), 4)
  x, dx = (3 + jax.random.normal(key, (2, 5, 3, 3, 4), jnp.float64) for key in keys[:2])
  scale, bias = (jax.random.normal(key, (2, 4), jnp.float64) for key in keys[2:])
  return (x, scale, bias), (dx, scale[::-1], bias[::-1])


def total(norm, *primals):
  """Every output counts, so every derivative is seen."""
  y, mean, variance = norm(*primals)
  return (jnp.sin(3 * y)).sum() + (mean**3).sum() + jnp.cos(variance).sum()


COMPOSITIONS = {
  "values": lambda norm, primals, tangents: jax.vmap(norm)(*primals),
  "vmap(grad)": lambda norm, primals, tangents: jax.vmap(
    jax.grad(partial(total, norm), (0, 1, 2))
  )(*primals),
  "jvp": lambda norm, primals, tangents: jax.jvp(jax.vmap(norm), primals, tangents),
  "jvp(grad)": lambda norm, primals, tangents: jax.jvp(
    jax.grad(lambda *a: jax.vmap(partial(total, norm))(*a).sum(), (0, 1, 2)), primals, tangents
  ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_equals_flax(name):
  with jax.enable_x64(True):
    got, want = (
      jax.jit(partial(COMPOSITIONS[name], norm))(*tensors()) for norm in (ours, flax)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_a_constant_channel_stays_finite():
  x = jnp.full((4, 2, 2, 3), 1e4)  # E[x^2] - E[x]^2 may fall below zero: it is clipped
  slope = jax.grad(lambda x: ours(x, jnp.ones(3), jnp.zeros(3))[0].sum())(x)
  assert np.isfinite(slope).all() and (ours(x, jnp.ones(3), jnp.zeros(3))[2] >= 0).all()
