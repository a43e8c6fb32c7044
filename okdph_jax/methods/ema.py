"""EMA: exponentially averaged weights beside any method."""

import jax
import jax.numpy as jnp

from okdph_jax.methods.protocol import add_averaged_readers, remember
from okdph_jax.schedules import average_decay
from okdph_jax.trees import lerp


def ema(method, context, *, decay=0.999):
  """Averages what `method` trains and leaves its training alone.

      theta' <- d theta' + (1 - d) theta,  d = min(1 - 1 / (t + 1), decay), every step

  Batch statistics are averaged alike. Every reader gets a twin of the averaged weights,
  "ema_student_0" beside "student_0". `mean_teacher` is something else: its average teaches.
  """
  del context

  def init(key, views):
    learner = method.init(key, views)
    start = {"params": learner.params, "stats": learner.stats}
    return remember(learner, "ema", jax.tree.map(jnp.copy, start))

  def after_step(learner, step, key):
    learner = method.after_step(learner, step, key)
    now = {"params": learner.params, "stats": learner.stats}
    average = lerp(now, learner.memory["ema"], average_decay(step, decay))
    return learner.replace(memory=learner.memory | {"ema": average})

  def averaged(learner):
    return learner.replace(**learner.memory["ema"])

  return method._replace(
    init=init,
    after_step=after_step,
    predict=add_averaged_readers(method.predict, averaged, "ema"),
    ensembles=add_averaged_readers(method.ensembles, averaged, "ema"),
    networks=add_averaged_readers(method.networks, averaged, "ema"),
  )
