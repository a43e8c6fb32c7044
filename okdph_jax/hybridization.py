"""The paper's idea in four functions: weights, the hybrid, and fusion with it.

Zhang et al., "Generalization Matters: Loss Minima Flattening via Parameter
Hybridization for Efficient Online Knowledge Distillation", CVPR 2023,
arXiv:2303.14666. A stack of students is any tree whose leaves carry the N students
on their first axis; parameters and running batch statistics are treated alike. In a
training loop of your own:

    weights = dirichlet(key, n)                 # drawn anew for every batch
    hybrid = hybridize(stack, weights)          # differentiable: student m gets r_m of
    loss += cross_entropy(f(hybrid, x), label)  # the hybrid's gradient
    ...
    stack = fuse(stack, hybridize(stack, weights), gamma=0.5)   # every few batches
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree


def dirichlet(
  key: Key[Array, ""], n: int, alpha: float | Sequence[float] = 1.0
) -> Float[Array, " N"]:
  """Hybrid weights r ~ Dir(alpha), positive, summing to one.

  alpha: one number for all students, or N of them; 1, the paper's, is uniform over the
  simplex.
  """
  each = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), (n,))
  return jax.random.dirichlet(key, each)


def uniform(n: int) -> Float[Array, " N"]:
  """Hybrid weights 1/N (the authors' release)."""
  return jnp.full((n,), 1.0 / n, jnp.float32)


def hybridize(stack: PyTree, weights: Float[Array, " N"]) -> PyTree:
  """The hybrid-weight model, sum_m r_m theta_m: leaves [N, ...] and r [N] -> leaves [...].

  Linear in the stack, so its gradient reaches student m scaled by r_m (Eq. 4).

      >>> stack = {"kernel": jnp.array([[0.0, 4.0], [2.0, 8.0]])}  # two students
      >>> hybrid = hybridize(stack, uniform(2))
      >>> hybrid["kernel"].tolist()
      [1.0, 6.0]
      >>> fuse(stack, hybrid, gamma=0.5)["kernel"].tolist()
      [[0.5, 5.0], [1.5, 7.0]]
  """
  full = jax.lax.Precision.HIGHEST  # accelerators would round the weights to ten bits
  return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1, precision=full), stack)


def fuse(stack: PyTree, hybrid: PyTree, gamma: float) -> PyTree:
  """Moves every student towards the hybrid: gamma theta_h + (1 - gamma) theta_m.

  gamma in [0, 1]: 0 leaves the students alone, 1 makes them all the hybrid. The hybrid of
  the fused students, with the same weights, is the hybrid itself.
  """
  return optax.incremental_update(hybrid, stack, gamma)
