"""Weighted: the two halves of any method's objective, scaled; the control of comparisons."""

from okdph_jax.core import Terms


def weighted(method, context, *, task_weight=1.0, distill_weight=1.0):
  """`method` with its objective a task + b distill.

  Two controls of ours: OKDPH's loss scale, which is smaller against the same weight decay
  (`base` with a = omega), and DOT's, which in effect reweights the terms 1 : 7.
  """
  del context

  def losses(learner, views, step, key):
    terms, aux = method.losses(learner, views, step, key)
    return Terms(task_weight * terms.task, distill_weight * terms.distill), aux

  return method._replace(losses=losses)
