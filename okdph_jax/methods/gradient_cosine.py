"""Gradient cosine: logs how far the gradients of the two losses agree, around any method."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from okdph_jax.core import Terms
from okdph_jax.methods.dot import split_gradient
from okdph_jax.methods.protocol import Context, Method, plain_gradient


def gradient_cosine(method: Method, context: Context) -> Method:
  """Logs "gradient_cosine", of the gradients of `Terms.task` and `Terms.distill`.

  Over the parameters that both reach, as the method weights the two; 0 where one of them is
  zero. Training is that of `method`, but for rounding: the gradient is the sum of the two,
  which take a backward pass each. Around `dot`, which has both, it costs nothing.
  """
  del context

  def gradient(objective, params):
    plain = method.gradient is plain_gradient
    split, (learner, metrics) = (split_gradient if plain else method.gradient)(
      objective, params
    )
    if not isinstance(split, Terms):
      raise ValueError(
        "gradient_cosine compares the gradients that are descended with; name it before sam "
        "and asam in wrappers"
      )
    both = [pair for pair in zip(*map(_leaves, split), strict=True) if None not in pair]
    if not both:
      raise ValueError(
        "gradient_cosine: no parameter has both losses, of the labels and of distillation; "
        "leave it out of wrappers"
      )
    metrics = metrics | {"gradient_cosine": jnp.nan_to_num(cosine(*zip(*both, strict=True)))}
    return jax.tree.map(_sum, *split, is_leaf=_none) if plain else split, (learner, metrics)

  return method._replace(gradient=gradient)


def cosine(a: PyTree, b: PyTree) -> Float[Array, ""]:
  """The cosine of two trees as vectors; NaN where one of them is zero."""
  dots = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)
  return sum(jax.tree.leaves(dots)) / (optax.tree.norm(a) * optax.tree.norm(b))


def _none(gradient):
  return gradient is None


def _leaves(tree):
  return jax.tree.leaves(tree, is_leaf=_none)


def _sum(a, b):
  return b if a is None else a if b is None else a + b
