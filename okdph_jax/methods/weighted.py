"""Weighted: the two halves of any method's objective, scaled; the control of comparisons."""

from okdph_jax.core import Terms
from okdph_jax.methods.protocol import Context, Method, check_nonnegative


def weighted(
  method: Method, context: Context, *, task_weight: float = 1.0, distill_weight: float = 1.0
) -> Method:
  """`method` with its objective a task + b distill.

  Two controls of ours: OKDPH's loss scale, which is smaller against the same weight decay
  (`base` with a = omega), and DOT's, which in effect reweights the terms 1 : 7.
  """
  del context
  check_nonnegative("weighted", task_weight=task_weight, distill_weight=distill_weight)

  def losses(learner, views, step, key):
    terms, aux = method.losses(learner, views, step, key)
    return Terms(task_weight * terms.task, distill_weight * terms.distill), aux

  return method._replace(losses=losses)
