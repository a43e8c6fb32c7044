"""Gradient cosine: logs the cosine between the gradients of the two terms of any method."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from okdph_jax.core import Terms
from okdph_jax.methods.dot import split_gradient
from okdph_jax.methods.protocol import Context, Method, plain_gradient


def gradient_cosine(method: Method, context: Context) -> Method:
  """Logs "gradient_cosine", the cosine between the gradients of task and distill.

  Over all parameters that both terms depend on; 0 if one of the gradients is zero. Training
  differs from `method` by rounding only: the gradient is the sum of the two, each of which
  takes a backward pass. Around `dot`, which computes both anyway, there is no extra cost.
  """
  del context

  def gradient(objective, params):
    plain = method.gradient is plain_gradient
    split, (learner, metrics) = (split_gradient if plain else method.gradient)(
      objective, params
    )
    if not isinstance(split, Terms):
      raise ValueError("gradient_cosine must come before sam and asam in config.wrappers")
    both = [pair for pair in zip(*map(_leaves, split), strict=True) if None not in pair]
    if not both:
      raise ValueError(
        "gradient_cosine: no parameter receives gradients of both the task loss and the "
        "distillation loss; remove it from config.wrappers"
      )
    metrics = metrics | {"gradient_cosine": jnp.nan_to_num(cosine(*zip(*both, strict=True)))}
    return jax.tree.map(_sum, *split, is_leaf=_none) if plain else split, (learner, metrics)

  return method._replace(gradient=gradient)


def cosine(a: PyTree, b: PyTree) -> Float[Array, ""]:
  """The cosine between two trees as vectors; NaN if one of them is zero."""
  dots = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)
  return sum(jax.tree.leaves(dots)) / (optax.tree.norm(a) * optax.tree.norm(b))


def _none(gradient):
  return gradient is None


def _leaves(tree):
  return jax.tree.leaves(tree, is_leaf=_none)


def _sum(a, b):
  return b if a is None else a if b is None else a + b
