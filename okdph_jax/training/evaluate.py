"""Accuracy and cross-entropy of every reader, padded batches masked."""

import jax
import jax.numpy as jnp

from okdph_jax.losses import cross_entropy


def counter(method, augment, compiler_options=None):
  """Builds `count(learner, batch, mask, key) -> {reader: {"right", "nll"}}`, jitted sums.

  `augment` makes the one test view; `mask` [B] is False at padding.
  """

  def count(learner, batch, mask, key):
    image = augment(key, batch.image)[0]
    readers = method.predict(learner, image) | method.ensembles(learner, image)

    def one(logits):
      nll = jax.vmap(lambda z, y: cross_entropy(z[None], y[None]))(logits, batch.label)
      right = (logits.argmax(-1) == batch.label) & mask
      return {"right": right.sum(), "nll": jnp.where(mask, nll, 0.0).sum()}

    return {name: one(logits) for name, logits in readers.items()}

  return jax.jit(count, compiler_options=compiler_options)


def evaluate(count, learner, batches, key):
  """({reader: accuracy}, {reader: mean cross-entropy}) over (batch, mask) pairs.

  `key` feeds views that draw (the release's noisy test set); batch i folds i into it.
  """
  sums, total = None, 0
  for i, (batch, mask) in enumerate(batches):
    part = count(learner, batch, mask, jax.random.fold_in(key, i))
    sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    total += int(mask.sum())
  means = jax.tree.map(lambda s: float(s) / total, sums)
  return {r: m["right"] for r, m in means.items()}, {r: m["nll"] for r, m in means.items()}
