"""KR: no teacher, but a learnt row of logits per class."""

import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from okdph_jax.core import Terms
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.methods import peers
from okdph_jax.methods.protocol import Method, one_by_one
from okdph_jax.nn.students import each


def kr(context, *, temperature=2.0, fade=True, distances=None):
  """Knowledge Refinery (Ding et al., AAAI 2021; earlier arXiv:1908.05474).

      L = CE(z, y) + g KL_1(sg[R_y] -> u) + KL(softmax(sg[u] / tau) || softmax(R_y))

  u are the logits without the label's, R [K, K-1] the learnt logits of the wrong classes,
  trained by the same SGD as the network. g = 1 - the training accuracy of the epoch so far
  (`fade=True`), or g = 1, as in every command of OKDPH's release (`fade=False`), where
  the other crashes.

  R starts at 0, uniform. Release and paper start it from distances between word vectors of
  the class names, which the release does not contain: `distances` [K, K] starts it from
  their negatives, standardised (the sign is ours: near classes are likely ones).
  """
  if not temperature > 0:
    raise ValueError(f"kr: temperature={temperature} must be positive")
  net, table = context.net, residual_labels(distances, context.classes)

  def init(key, views):
    learner = peers.independent(net, key[None], views)
    params = learner.params | {"shared": {"labels": jnp.array(table)}}
    memory = {"right": jnp.float32(0), "seen": jnp.float32(0)} if fade else {}
    return learner.replace(params=params, memory=memory)

  def losses(learner, views, step, key):
    image, label = views
    logits, stats = each(net, learner.students, image, key, train=True)  # [1, B, K]
    wrong, row = (
      without(logits[0], label),
      learner.params["shared"]["labels"][label],
    )  # [B, K-1]
    gain, memory = 1.0, learner.memory
    if fade:
      fresh = step % context.epoch_steps != 0  # 0 at the first batch of an epoch
      right = fresh * memory["right"] + jnp.sum(logits[0].argmax(-1) == label)
      seen = fresh * memory["seen"] + len(label)
      gain, memory = 1 - right / seen, memory | {"right": right, "seen": seen}
    distill = gain * kl(wrong, stop_gradient(row)) + kl(row, stop_gradient(wrong) / temperature)
    learner = learner.replace(stats=learner.stats | {"students": stats}, memory=memory)
    metrics = {"accuracy": accuracy(logits[0], label)}
    return Terms(cross_entropy(logits[0], label), distill), (learner, metrics)

  def predict(learner, image):
    return one_by_one(peers.students_logits(net, learner, image))

  return Method(views=1, init=init, losses=losses, predict=predict)


def without(logits, label):
  """The logits of all other classes, in order: [B, K], [B] -> [B, K-1]."""
  others = jnp.arange(logits.shape[-1] - 1)
  return jnp.take_along_axis(logits, others + (others >= label[:, None]), -1)


def residual_labels(distances, classes):
  """The start of R: [K, K-1], zeros or standardised nearness."""
  if distances is None:
    return np.zeros((classes, classes - 1), np.float32)
  distances = np.asarray(distances, np.float32)
  if distances.shape != (classes, classes):
    raise ValueError(
      f"kr's distances have shape {distances.shape}; {classes} classes need a square"
    )
  off = distances[~np.eye(classes, dtype=bool)].reshape(classes, classes - 1)
  return (off.mean() - off) / off.std()
