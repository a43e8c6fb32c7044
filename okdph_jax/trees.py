"""Arithmetic on trees of arrays."""

import jax


def lerp(a, b, t):
  """(1 - t) a + t b, leaf by leaf; exactly a at t = 0 and b at t = 1."""
  return jax.tree.map(lambda a, b: (1 - t) * a + t * b, a, b)
