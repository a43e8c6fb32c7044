"""SWA: the mean of the weights at the end of the last epochs of any method."""

import jax
import jax.numpy as jnp
from jax import lax

from okdph_jax.methods.protocol import Context, Method, add_averaged_readers, check_positive
from okdph_jax.methods.statistics import over_a_pass, with_mean_statistics
from okdph_jax.schedules import milestone


def swa(
  method: Method, context: Context, *, start: int | str = 241, learning_rate: float = 0.001
) -> Method:
  """Stochastic Weight Averaging (Izmailov et al., UAI 2018, arXiv:1803.05407).

      theta_swa <- theta_swa + (theta - theta_swa) / (n + 1)

  at the end of epoch `start`, counted from 1, and of every later one; n counts the epochs
  averaged so far. `start` is for a run of 300 epochs and scales with the run; "20 epochs" does
  not scale. The learning rate is constant until half of `start`, falls linearly to
  `learning_rate` at nine tenths of it, and stays there; the configured milestones have no
  effect.

  Each reader gets a second one of averaged weights: "swa_student_0" for "student_0"; before
  `start` they are equal. Before each evaluation the batch statistics of averaged students are
  re-estimated as means over the training images, one pass, and stored in the checkpoint;
  "swa_hybrid" and "swa_center" have means of these, unless `reestimate` is put around. The
  schedule, `start` and `learning_rate` are those of OKDPH's release; the official code has
  learning rates of 0.01 to 0.05.
  """
  if not isinstance(start, str):
    check_positive("swa", start=start)
    if start > 1e6:
      raise ValueError(f"swa: start={start} must lie in (0, 1e6]")
  check_positive("swa", learning_rate=learning_rate)
  first_step = milestone(start, epochs=context.epochs, epoch_steps=context.epoch_steps)

  def init(key, views):
    learner = method.init(key, views)
    average = jax.tree.map(jnp.copy, {"params": learner.params, "stats": learner.stats})
    return learner.with_memory_of("swa", average | {"snapshots": jnp.int32(0)})

  def snapshot(learner):
    average = dict(learner.memory["swa"])
    n = average.pop("snapshots")
    now, rate = {"params": learner.params, "stats": learner.stats}, 1 / (n + 1)
    # Not optax.incremental_update, which rounds differently: the bits of earlier runs are kept.
    average = jax.tree.map(lambda a, b: (1 - rate) * a + rate * b, average, now)
    return learner.with_memory(swa=average | {"snapshots": n + 1})

  def after_step(learner, step, key):
    learner = method.after_step(learner, step, key)
    due = (step >= first_step) & (step % context.epoch_steps == 0)
    return lax.cond(due, snapshot, lambda learner: learner, learner)

  def averaged(learner):
    average = dict(learner.memory["swa"])
    started = average.pop("snapshots") > 0
    now = {"params": learner.params, "stats": learner.stats}
    return learner.replace(**jax.tree.map(lambda a, b: jnp.where(started, a, b), average, now))

  def schedule(given):
    first = method.schedule(given)(0)

    def rate(step):
      done = (step // context.epoch_steps) * context.epoch_steps / jnp.maximum(first_step, 1)
      return first + (learning_rate - first) * jnp.clip((done - 0.5) / 0.4, 0.0, 1.0)

    return rate

  def update_statistics(learner, views, seen):
    """The learner with a batch added to the means over the `seen` images before it."""
    key = jax.random.fold_in(jax.random.key(0), seen)  # for dropout; equal at all evaluations

    def forward():
      _, (after, _) = method.losses(learner, views, 0, key)
      return after.stats

    stats = with_mean_statistics(forward, seen, len(views.label))
    return learner.replace(stats=stats)

  estimated = over_a_pass(update_statistics)

  def before_eval(learner, batches):
    learner = method.before_eval(learner, batches)
    if not learner.memory["swa"]["snapshots"]:
      return learner
    stats = estimated(averaged(learner), batches).stats
    memory = learner.memory["swa"] | {"stats": stats}
    return learner.with_memory(swa=memory)

  wrapped = method._replace(
    init=init, after_step=after_step, before_eval=before_eval, schedule=schedule
  )
  return add_averaged_readers(wrapped, "swa", averaged)
