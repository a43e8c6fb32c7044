"""EMA: an exponential moving average of the weights of any method."""

import jax
import jax.numpy as jnp
import optax

from okdph_jax.methods.protocol import Context, Method, add_averaged_readers, check_fraction
from okdph_jax.schedules import average_decay


def ema(method: Method, context: Context, *, decay: float = 0.999) -> Method:
  """Averages the weights of `method` after every step; its training is unchanged.

      theta' <- d theta' + (1 - d) theta,  d = min(1 - 1 / (t + 1), decay)

  Batch statistics are averaged in the same way. Each reader gets a second one with averaged
  weights: "ema_student_0" for "student_0". In `mean_teacher` the average is also a teacher.
  """
  del context
  check_fraction("ema", decay=decay)

  def init(key, views):
    learner = method.init(key, views)
    start = {"params": learner.params, "stats": learner.stats}
    return learner.with_memory_of("ema", jax.tree.map(jnp.copy, start))

  def after_step(learner, step, key):
    learner = method.after_step(learner, step, key)
    now = {"params": learner.params, "stats": learner.stats}
    rate = 1 - average_decay(step, decay)
    return learner.with_memory(ema=optax.incremental_update(now, learner.memory["ema"], rate))

  def averaged(learner):
    return learner.replace(**learner.memory["ema"])

  return add_averaged_readers(
    method._replace(init=init, after_step=after_step), "ema", averaged
  )
