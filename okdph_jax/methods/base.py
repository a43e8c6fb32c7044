"""Base: networks trained on the labels alone, without distillation."""

from okdph_jax.core import Terms, is_traced
from okdph_jax.losses import cross_entropy
from okdph_jax.methods.peers import peers
from okdph_jax.methods.protocol import Context, Method, check_students


def base(
  context: Context,
  *,
  students: int = 1,
  label_smoothing: float = 0.0,
  same_init: bool = False,
) -> Method:
  """N networks, trained on the same batches.

      L_m = CE(z_m, y)

  With `students=3` and OKDPH's three views it costs as much as OKDPH with two students. With
  `same_init` the networks are equal at the start, as in OKDPH.
  """
  check_students("base", students, least=1)
  if not is_traced(label_smoothing) and not 0 <= label_smoothing < 1:
    raise ValueError(f"base: label_smoothing={label_smoothing} is outside [0, 1)")

  def criterion(logits, label, step):
    del step
    return Terms(cross_entropy(logits, label, smoothing=label_smoothing).sum(), 0.0)

  return peers(context, students, criterion, same_init=same_init)
