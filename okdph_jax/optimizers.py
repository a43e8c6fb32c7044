"""SGD, and DOT's SGD with two momentum buffers, as optax chains."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from okdph_jax.core import Terms, is_traced


def sgd(
  schedule: optax.ScalarOrSchedule,
  *,
  momentum: float = 0.9,
  weight_decay: Any = 5e-4,
  nesterov: bool = False,
) -> optax.GradientTransformation:
  """SGD with L2 regularisation of every leaf added to the gradient, as PyTorch's.

  g <- g + wd theta;  v <- momentum v + g;  theta <- theta - lr v, or with Nesterov momentum
  theta <- theta - lr (g + momentum v). No dampening; weight decay includes batch
  normalisation's scale and shift. `weight_decay` is one number, or one per subtree (a tree that
  is a prefix of the parameters).
  """
  return optax.chain(
    optax.stateless(lambda grads, params: add_decay(grads, params, weight_decay)),
    optax.trace(momentum, nesterov=nesterov),
    optax.scale_by_learning_rate(schedule),
  )


def dot_sgd(
  schedule: optax.ScalarOrSchedule,
  *,
  momentum: float = 0.9,
  weight_decay: Any = 5e-4,
  nesterov: bool = False,
  delta: float,
) -> optax.GradientTransformation:
  """SGD with a separate momentum for each of the two losses (DOT, arXiv:2307.08436).

      v_ce <- (mu - delta) v_ce + g_ce + wd theta
      v_kd <- (mu + delta) v_kd + g_kd
      theta <- theta - lr (v_ce + v_kd)

  The gradients are `Terms` of two trees, with None where a loss does not depend on a leaf. A
  leaf that only one loss depends on has a single buffer, v_ce, with momentum mu; its v_kd stays
  zero.
  """
  if nesterov:
    raise ValueError("dot has no Nesterov momentum; leave config.nesterov out")
  traced = is_traced(delta) or is_traced(momentum)
  if not traced and not 0 <= delta <= momentum < 1 - delta:
    raise ValueError(
      f"dot: momentum {momentum} - delta {delta} and momentum + delta must lie in [0, 1); "
      "choose a smaller delta, or another config.momentum"
    )

  def init(params):
    return Terms(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

  def task(decay, v, g_ce, g_kd):
    if g_ce is None or g_kd is None:
      return momentum * v + decay + sum(g for g in (g_ce, g_kd) if g is not None)
    return (momentum - delta) * v + decay + g_ce

  def distill(v, g_ce, g_kd):
    return v if g_ce is None or g_kd is None else (momentum + delta) * v + g_kd

  def update(updates, state, params=None):
    decay = add_decay(jax.tree.map(jnp.zeros_like, params), params, weight_decay)  # wd theta
    v_ce = jax.tree.map(task, decay, state.task, *updates)
    v_kd = jax.tree.map(distill, state.distill, *updates)
    return jax.tree.map(jnp.add, v_ce, v_kd), Terms(v_ce, v_kd)

  return optax.chain(
    optax.GradientTransformation(init, update), optax.scale_by_learning_rate(schedule)
  )


def add_decay(grads: PyTree, params: PyTree, weight_decay: Any) -> PyTree:
  """g + wd theta. weight_decay: a number, or a tree of numbers that is a prefix of `params`."""

  def subtree(rate, grads, params):
    return jax.tree.map(lambda g, p: g + rate * p, grads, params)

  return jax.tree.map(subtree, weight_decay, grads, params)
