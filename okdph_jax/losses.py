"""Losses: logits in, means over the batch out, in nats. Leading axes are kept.

Nothing here stops a gradient: whether gradient flows into a teacher is part of what
a method is, and is written there.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits, label, *, smoothing=0.0):
  """mean_b -log softmax(logits_b)[label_b]: [..., B, K], int [B] -> [...].

  `smoothing` s: the target is 1 - s on the label and s / (K - 1) elsewhere.
  """
  log_p = jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(log_p, jnp.broadcast_to(label[:, None], (*log_p.shape[:-1], 1)), -1)
  own = own[..., 0]
  if not smoothing:
    return -own.mean(-1)
  rest = (log_p.sum(-1) - own) / (logits.shape[-1] - 1)
  return -((1 - smoothing) * own + smoothing * rest).mean(-1)


def kl(student, teacher, temperature=1.0):
  """T^2 mean_b sum_k p_t (log p_t - log p_s), p = softmax(logits / T): [..., B, K] -> [...].

  The teacher weights the sum; gradient flows into both (Hinton et al., arXiv:1503.02531).
  """
  log_s = jax.nn.log_softmax(student / temperature)
  log_t = jax.nn.log_softmax(teacher / temperature)
  return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(-1).mean(-1)


def consistency(student, teacher):
  """mean_b mean_k (softmax(student) - softmax(teacher))^2: [..., B, K] -> [...]."""
  return ((jax.nn.softmax(student) - jax.nn.softmax(teacher)) ** 2).mean((-1, -2))


def accuracy(logits, label):
  """The fraction of the batch that is right: [..., B, K], int [B] -> [...]."""
  return (logits.argmax(-1) == label).mean(-1)
