"""Mean Teacher: consistency with an average of the student's weights, the paper's EMA row."""

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from okdph_jax.core import Terms
from okdph_jax.losses import accuracy, consistency, cross_entropy
from okdph_jax.methods import peers
from okdph_jax.methods.protocol import Context, Method, check_fraction, check_nonnegative
from okdph_jax.nn.students import each
from okdph_jax.schedules import average_decay, ramp


def mean_teacher(context: Context, *, weight: float = 10.0, decay: float = 0.99) -> Method:
  """Mean Teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780), as OKDPH's EMA row.

      L = CE(z(x_1), y) + c(e) mean_b mean_k (softmax z(x_1) - softmax sg[z'(x_2)])^2
      theta' <- alpha theta' + (1 - alpha) theta,  alpha = min(1 - 1 / (t + 1), decay)

  c(e) = `weight` ramp(e; 5). The teacher theta' has the second view. Only parameters are
  averaged; its batch statistics are its own. It starts as a copy of the student, in the release
  from another initialisation, which is averaged out within a few steps. The wrapper `ema`, by
  contrast, averages weights without a consistency loss.
  """
  check_nonnegative("mean_teacher", weight=weight)
  check_fraction("mean_teacher", decay=decay)
  net = context.net

  def init(key, views):
    learner = peers.init_networks(net, key[None], views)
    return learner.with_memory(teacher=jax.tree.map(jnp.copy, learner.students))

  def losses(learner, views, step, key):
    image, label = views
    key, teacher_key = jax.random.split(key)
    teacher = learner.memory["teacher"]
    logits, stats = each(net, learner.students, image[:1], key, train=True)  # [1, B, K]
    target, teacher_stats = each(net, teacher, image[1:], teacher_key, train=True)
    ramped = weight * ramp(
      step, epochs=context.epochs, epoch_steps=context.epoch_steps, length=5
    )
    terms = Terms(
      cross_entropy(logits[0], label), ramped * consistency(logits[0], stop_gradient(target[0]))
    )
    learner = learner.with_stats(students=stats)
    learner = learner.with_memory(teacher=teacher | {"batch_stats": teacher_stats})
    return terms, (learner, {"accuracy": accuracy(logits[0], label)})

  def after_step(learner, step, key):
    del key
    teacher, rate = learner.memory["teacher"], 1 - average_decay(step, decay)
    params = optax.incremental_update(learner.params["students"], teacher["params"], rate)
    return learner.with_memory(teacher=teacher | {"params": params})

  def teacher(learner):
    return {"teacher": jax.tree.map(lambda leaf: leaf[0], learner.memory["teacher"])}

  return Method(
    views=2,
    init=init,
    losses=losses,
    **peers.readers(net, teacher),
    after_step=after_step,
    independent=True,
    in_memory=("teacher",),
  )
