"""SWA: the average of the last epochs' weights, beside any method."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from okdph_jax.methods.protocol import add_averaged_readers, remember
from okdph_jax.runtime import host
from okdph_jax.schedules import milestone
from okdph_jax.trees import lerp


def swa(method, context, *, start: int | str = 241, learning_rate=0.001):
  """Stochastic Weight Averaging (Izmailov et al., UAI 2018, arXiv:1803.05407).

      theta_swa <- theta_swa + (theta - theta_swa) / (n + 1)

  at the end of epoch `start`, counted from 1, and of every one after. `start` is in epochs of
  a run of 300, and scales with the run, or in words ("20 epochs").
  The schedule's first rate is kept up to half of `start`, falls linearly to `learning_rate` at
  nine tenths of it, and stays there; the rest of the schedule is replaced.

  Every reader gets a twin of the averaged weights, "swa_student_0" beside "student_0"; before
  `start` the two are equal. Batch statistics are estimated anew before an evaluation, as
  the image-weighted mean of each batch's over one pass of training views; without that pass
  (a learner read from a checkpoint) the snapshots' running statistics are averaged. The
  schedule, start and rate are OKDPH's release's; the official code has a rate of 0.01 to 0.05.
  """
  start = milestone(start, epochs=context.epochs, epoch_steps=context.epoch_steps)

  def init(key, views):
    learner = method.init(key, views)
    average = jax.tree.map(jnp.copy, {"params": learner.params, "stats": learner.stats})
    return remember(learner, "swa", average | {"snapshots": jnp.int32(0)})

  def snapshot(learner):
    memory = dict(learner.memory["swa"])
    n = memory.pop("snapshots")
    now = {"params": learner.params, "stats": learner.stats}
    memory = lerp(memory, now, 1 / (n + 1)) | {"snapshots": n + 1}
    return learner.replace(memory=learner.memory | {"swa": memory})

  def after_step(learner, step, key):
    learner = method.after_step(learner, step, key)
    due = (step >= start) & (step % context.epoch_steps == 0)
    return lax.cond(due, snapshot, lambda learner: learner, learner)

  def averaged(learner):
    average = dict(learner.memory["swa"])
    begun = average.pop("snapshots") > 0
    now = {"params": learner.params, "stats": learner.stats}
    return learner.replace(**jax.tree.map(lambda a, b: jnp.where(begun, a, b), average, now))

  def schedule(given):
    first = method.schedule(given)(0)

    def rate(step):
      done = (step // context.epoch_steps) * context.epoch_steps / max(start, 1)
      return first + (learning_rate - first) * jnp.clip((done - 0.5) / 0.4, 0.0, 1.0)

    return rate

  @partial(jax.jit, compiler_options=host.compiler_options())
  def absorb(learner, views, seen):
    """The learner with this batch's statistics in the mean over the `seen` images before it."""
    key = jax.random.fold_in(jax.random.key(0), seen)  # dropout's, the same at every evaluation
    with cumulative(seen / (seen + len(views.label))):
      _, (after, _) = method.losses(learner, views, 0, key)
    return learner.replace(stats=after.stats)

  def before_eval(learner, batches):
    learner = method.before_eval(learner, batches)
    if not learner.memory["swa"]["snapshots"]:
      return learner
    average, seen = averaged(learner), 0
    for views in batches:
      average = absorb(average, views, jnp.int32(seen))
      seen += len(views.label)
    memory = learner.memory["swa"] | {"stats": average.stats}
    return learner.replace(memory=learner.memory | {"swa": memory})

  return method._replace(
    init=init,
    after_step=after_step,
    before_eval=before_eval,
    schedule=schedule,
    predict=add_averaged_readers(method.predict, averaged, "swa"),
    ensembles=add_averaged_readers(method.ensembles, averaged, "swa"),
    networks=add_averaged_readers(method.networks, averaged, "swa"),
  )


def cumulative(momentum):
  """Within it, every `nn.BatchNorm` keeps `momentum` (0: nothing) of its running statistics."""

  def keep(call, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
      object.__setattr__(context.module, "momentum", momentum)
    return call(*args, **kwargs)

  return nn.intercept_methods(keep)
