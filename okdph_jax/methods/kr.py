"""KR: learned logits of the wrong classes in place of a teacher."""

import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from okdph_jax.core import Terms
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.methods import peers
from okdph_jax.methods.protocol import Context, Method, check_positive
from okdph_jax.nn.students import each


def kr(
  context: Context, *, temperature: float = 2.0, fade: bool = True, distances=None
) -> Method:
  """Knowledge Refinery (Ding et al., AAAI 2021; earlier arXiv:1908.05474).

      L = CE(z, y) + g KL_1(sg[R_y] -> u) + KL(softmax(sg[u] / tau) || softmax(R_y))

  u are the logits without the label's. R [K, K-1] are learned logits of the wrong classes for
  each label, trained by the same SGD as the network. With `fade=True` g is 1 - the training
  accuracy of the epoch so far; with `fade=False` g = 1, as in every command of OKDPH's release,
  whose code fails otherwise.

  R starts at 0, i.e. uniform. Paper and release start from distances between word vectors of
  the class names, which the release does not contain. Given `distances` [K, K], R starts from
  their standardised negatives; the sign is our choice, since similar classes are likely ones.
  """
  check_positive("kr", temperature=temperature)
  net, table = context.net, residual_labels(distances, context.classes)

  def init(key, views):
    learner = peers.init_networks(net, key[None], views)
    params = learner.params | {"shared": {"labels": jnp.array(table)}}
    memory = {"right": jnp.float32(0), "seen": jnp.float32(0)} if fade else {}
    return learner.replace(params=params, memory=memory)

  def losses(learner, views, step, key):
    image, label = views
    logits, stats = each(net, learner.students, image, key, train=True)  # [1, B, K]
    others = without_label(logits[0], label)  # [B, K-1]
    learned = learner.params["shared"]["labels"][label]  # [B, K-1]
    weight, learner = 1.0, learner.with_stats(students=stats)
    if fade:
      memory = learner.memory
      same_epoch = step % context.epoch_steps != 0  # False at the first batch of an epoch
      right = same_epoch * memory["right"] + jnp.sum(logits[0].argmax(-1) == label)
      seen = same_epoch * memory["seen"] + len(label)
      weight, learner = 1 - right / seen, learner.with_memory(right=right, seen=seen)
    distill = weight * kl(others, stop_gradient(learned))
    distill += kl(learned, stop_gradient(others) / temperature)
    metrics = {"accuracy": accuracy(logits[0], label)}
    return Terms(cross_entropy(logits[0], label), distill), (learner, metrics)

  return Method(views=1, init=init, losses=losses, **peers.readers(net))


def without_label(
  logits: Float[Array, "B K"], label: Int[Array, " B"]
) -> Float[Array, "B K-1"]:
  """The logits of the other classes, in order."""
  others = jnp.arange(logits.shape[-1] - 1)
  return jnp.take_along_axis(logits, others + (others >= label[:, None]), -1)


def residual_labels(distances, classes: int) -> Float[np.ndarray, "K K-1"]:
  """The initial R: zeros, or the negated and standardised distances."""
  if distances is None:
    return np.zeros((classes, classes - 1), np.float32)
  distances = np.asarray(distances, np.float32)
  if distances.shape != (classes, classes):
    raise ValueError(
      f"kr: distances have the shape {list(distances.shape)}; it must be [{classes}, {classes}]"
    )
  off = distances[~np.eye(classes, dtype=bool)].reshape(classes, classes - 1)
  return (off.mean() - off) / off.std()
