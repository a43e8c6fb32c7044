"""Losses in nats: means over the batch; leading axes are kept.

No loss stops a gradient. Whether gradient flows into a teacher is the method's decision.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from okdph_jax.core import is_traced


def cross_entropy(
  logits: Float[Array, "*N B K"], label: Int[Array, " B"], *, smoothing: float = 0.0
) -> Float[Array, "*N"]:
  """mean_b -log softmax(logits_b)[label_b].

  `smoothing` s: the target is 1 - s on the label and s / (K - 1) elsewhere.
  """
  log_p = jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(log_p, jnp.broadcast_to(label[:, None], (*log_p.shape[:-1], 1)), -1)
  own = own[..., 0]
  if not is_traced(smoothing) and not smoothing:
    return -own.mean(-1)
  rest = (log_p.sum(-1) - own) / (logits.shape[-1] - 1)
  return -((1 - smoothing) * own + smoothing * rest).mean(-1)


def kl(
  student: Float[Array, "*N B K"], teacher: Float[Array, "*N B K"], temperature: float = 1.0
) -> Float[Array, "*N"]:
  """T^2 mean_b sum_k p_t (log p_t - log p_s), p = softmax(logits / T).

  Gradient flows into both (Hinton et al., arXiv:1503.02531).
  """
  log_s = jax.nn.log_softmax(student / temperature)
  log_t = jax.nn.log_softmax(teacher / temperature)
  return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(-1).mean(-1)


def consistency(
  student: Float[Array, "*N B K"], teacher: Float[Array, "*N B K"]
) -> Float[Array, "*N"]:
  """mean_b mean_k (softmax(student) - softmax(teacher))^2."""
  return ((jax.nn.softmax(student) - jax.nn.softmax(teacher)) ** 2).mean((-1, -2))


def accuracy(logits: Float[Array, "*N B K"], label: Int[Array, " B"]) -> Float[Array, "*N"]:
  """The fraction of the batch whose highest logit is the label's."""
  return (logits.argmax(-1) == label).mean(-1)
