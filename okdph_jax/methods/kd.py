"""KD: the predictions of a trained teacher as targets; also used for self-distillation."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from okdph_jax.core import Terms
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.methods import peers
from okdph_jax.methods.protocol import (
  Context,
  Method,
  check_choice,
  check_nonnegative,
  check_positive,
)
from okdph_jax.nn.students import each, run


def kd(
  context: Context,
  *,
  task_weight: float = 1.0,
  distill_weight: float = 1.0,
  temperature: float = 3.0,
  targets: str = "soft",
) -> Method:
  """Knowledge distillation from `context.teacher` (Hinton et al., arXiv:1503.02531).

      L = a CE(z, y) + b KL_T(sg[z_teacher] -> z)      a, b: task_weight, distill_weight

  The teacher is frozen, gets the student's view, and uses its running batch statistics.
  `targets="hard"` replaces the KL term by CE(z, argmax z_teacher). `targets="smoothed"` keeps
  the teacher's probability of the label and distributes the rest evenly over the other classes:
  label smoothing by the teacher's confidence in each image. With the previous generation as
  teacher and a = 1 - b this is self-distillation (Born-Again Networks, Furlanello et al., ICML
  2018, arXiv:1805.04770).

  Logs both losses without their weights as "label_loss" and "teacher_loss". So with b = 0 the
  log shows the distance from a teacher that the student does not learn from.

  The defaults are those of DefangChen/OKDDip-AAAI2020; megvii-research/mdistiller has
  a = 0.1, b = 0.9, T = 4 on CIFAR-100 and a = b = 0.5, T = 1 on ImageNet. OKDPH's release
  has no KD.
  """
  if context.teacher is None:
    raise ValueError("kd needs a teacher; name a finished run, config.teacher=DIR")
  check_choice("kd", "targets", targets, ("soft", "hard", "smoothed"))
  check_positive("kd", temperature=temperature)
  check_nonnegative("kd", task_weight=task_weight, distill_weight=distill_weight)
  net, (teacher_net, teacher) = context.net, context.teacher

  def init(key, views):
    logits, _ = jax.eval_shape(lambda: run(teacher_net, teacher, views[0]))
    if logits.shape[-1] != context.classes:
      raise ValueError(
        f"the teacher has {logits.shape[-1]} classes and the data have {context.classes}; "
        "choose a teacher that was trained on these classes"
      )
    learner = peers.init_networks(net, key[None], views)
    return learner.with_memory(teacher=jax.tree.map(jnp.copy, teacher))

  def losses(learner, views, step, key):
    del step
    image, label = views
    logits, stats = each(net, learner.students, image, key, train=True)  # [1, B, K]
    target = stop_gradient(run(teacher_net, learner.memory["teacher"], image[0])[0])
    label_loss = cross_entropy(logits[0], label)
    if targets == "smoothed":
      target = smoothed(target, label, temperature)
    if targets != "hard":
      teacher_loss = kl(logits[0], target, temperature)
    else:
      teacher_loss = cross_entropy(logits[0], target.argmax(-1))
    terms = Terms(task_weight * label_loss, distill_weight * teacher_loss)
    metrics = {
      "accuracy": accuracy(logits[0], label),
      "label_loss": label_loss,
      "teacher_loss": teacher_loss,
    }
    return terms, (learner.with_stats(students=stats), metrics)

  return Method(views=1, init=init, losses=losses, **peers.readers(net), independent=True)


def smoothed(
  logits: Float[Array, "B K"], label: Int[Array, " B"], temperature: float
) -> Float[Array, "B K"]:
  """Logits with the same probability of the label, softmax(logits / T), and equal others."""
  log_p = jax.nn.log_softmax(logits / temperature)
  own = jnp.take_along_axis(log_p, label[:, None], -1)
  rest = jnp.log(jnp.maximum(-jnp.expm1(own), 1e-30) / (logits.shape[-1] - 1))
  return temperature * jnp.where(jax.nn.one_hot(label, logits.shape[-1], dtype=bool), own, rest)
