"""Mean Teacher: consistency with an average of oneself, the paper's EMA row."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from okdph_jax.core import Terms
from okdph_jax.losses import accuracy, consistency, cross_entropy
from okdph_jax.methods import peers
from okdph_jax.methods.protocol import Method, one_by_one, whole
from okdph_jax.nn.students import each
from okdph_jax.schedules import average_decay, ramp
from okdph_jax.trees import lerp


def mean_teacher(context, *, weight=10.0, decay=0.99):
  """Mean Teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780), as OKDPH's EMA row.

      L = CE(z(x_1), y) + c(e) mean_b mean_k (softmax z(x_1) - softmax sg[z'(x_2)])^2
      theta' <- alpha theta' + (1 - alpha) theta,  alpha = min(1 - 1 / (t + 1), decay)

  c(e) = `weight` ramp(e; 5). The teacher theta' sees the second view with batch statistics of
  its own and averages parameters only. It starts as a copy of the student; in the release
  from another draw, which the first steps wash out. The wrapper `ema` is something else: it
  averages and teaches nothing.
  """
  net = context.net

  def init(key, views):
    learner = peers.independent(net, key[None], views)
    return learner.replace(memory={"teacher": jax.tree.map(jnp.copy, learner.students)})

  def losses(learner, views, step, key):
    image, label = views
    key, teacher_key = jax.random.split(key)
    teacher = learner.memory["teacher"]
    logits, stats = each(net, learner.students, image[:1], key, train=True)  # [1, B, K]
    target, own_stats = each(net, teacher, image[1:], teacher_key, train=True)
    ramped = weight * ramp(
      step, epochs=context.epochs, epoch_steps=context.epoch_steps, length=5
    )
    terms = Terms(
      cross_entropy(logits[0], label), ramped * consistency(logits[0], stop_gradient(target[0]))
    )
    teacher = teacher | {"batch_stats": own_stats}
    learner = learner.replace(
      stats=learner.stats | {"students": stats}, memory=learner.memory | {"teacher": teacher}
    )
    return terms, (learner, {"accuracy": accuracy(logits[0], label)})

  def after_step(learner, step, key):
    del key
    teacher, alpha = learner.memory["teacher"], average_decay(step, decay)
    params = lerp(learner.params["students"], teacher["params"], alpha)
    memory = learner.memory | {"teacher": teacher | {"params": params}}
    return learner.replace(memory=memory)

  def predict(learner, image):
    student = peers.students_logits(net, learner, image)
    teacher, _ = each(net, learner.memory["teacher"], image[None])
    return one_by_one(student) | {"teacher": teacher[0]}

  def networks(learner):
    teacher = jax.tree.map(lambda leaf: leaf[0], learner.memory["teacher"])
    return whole(learner) | {"teacher": teacher}

  return Method(
    views=2,
    init=init,
    losses=losses,
    predict=predict,
    networks=networks,
    after_step=after_step,
    independent=True,
  )
