"""Base: networks trained on the labels alone."""

from okdph_jax.core import Terms
from okdph_jax.losses import cross_entropy
from okdph_jax.methods.peers import peers


def base(context, *, students=1, label_smoothing=0.0):
  """N networks, independently started, that share only the batches.

      L_m = CE(z_m, y)

  With `students=3` and OKDPH's three views this is the control of equal cost.
  """

  def criterion(logits, label, step):
    del step
    return Terms(cross_entropy(logits, label, smoothing=label_smoothing).sum(), 0.0)

  return peers(context, students, criterion)
