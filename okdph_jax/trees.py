"""Arithmetic on trees of arrays."""

import jax
import jax.numpy as jnp


def lerp(a, b, t):
  """(1 - t) a + t b, leaf by leaf; exactly a at t = 0 and b at t = 1."""
  return jax.tree.map(lambda a, b: (1 - t) * a + t * b, a, b)


def norm(tree):
  """The Euclidean norm over all leaves jointly: []."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
