"""Weighted: the two terms of any method's objective, scaled, as a control experiment."""

from okdph_jax.core import Terms
from okdph_jax.methods.protocol import Context, Method, check_nonnegative


def weighted(
  method: Method, context: Context, *, task_weight: float = 1.0, distill_weight: float = 1.0
) -> Method:
  """`method` with the objective a task + b distill; a, b: `task_weight`, `distill_weight`.

  For two control experiments of this package. OKDPH's task loss is scaled by omega, which makes
  weight decay relatively stronger: compare `base` with a = omega. DOT in effect weights the
  terms 1 : 7: compare these weights with plain SGD.
  """
  del context
  check_nonnegative("weighted", task_weight=task_weight, distill_weight=distill_weight)

  def losses(learner, views, step, key):
    terms, aux = method.losses(learner, views, step, key)
    return Terms(task_weight * terms.task, distill_weight * terms.distill), aux

  return method._replace(losses=losses)
