"""KDCL: an aggregate of the students' logits is the soft target of all."""

from itertools import combinations

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from okdph_jax.core import Terms
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.methods.peers import peers
from okdph_jax.methods.protocol import (
  Context,
  Method,
  check_choice,
  check_nonnegative,
  check_positive,
  check_students,
  identity,
)
from okdph_jax.nn.students import each

SWEEPS = 8  # of coordinate descent, for the target "linear" of more than two students
BISECTIONS = 20  # for the division of a pair's weight: an error of 1e-6


def kdcl(
  context: Context,
  *,
  students: int = 2,
  target: str = "minlogit",
  task_weight: float = 1.0,
  distill_weight: float = 1.0,
  temperature: float = 2.0,
  same_init: bool = False,
) -> Method:
  """Knowledge Distillation via Collaborative Learning (Guo et al., CVPR 2020).

      L_m = a CE(z_m, y) + b KL_T(sg[z_t] -> z_m)      a, b: task_weight, distill_weight

  Each student has its own view. `target` chooses z_t. Per example: "naive", the logits of the
  student with the lowest loss; "linear", the convex combination with the lowest loss;
  "minlogit", the elementwise minimum over students of the logits minus the label's logit. For
  all examples: "general", the combination w = C^-1 1 / (1^T C^-1 1) for the covariance C of the
  students' errors, which may have negative weights.

  The paper estimates C on held-out images once per epoch. Here C is estimated on the training
  batches of the previous epoch, each before its step; late in training these errors are too
  small, but still comparable between students. The first epoch has w = 1/N. The paper's weight
  of the KL term is not known for certain; the default is 1.

  OKDPH's release uses none of these four, but `target="mean"` with a = b = 0.5 and T = 4. With
  `same_init` the students are equal at the start, as in OKDPH.
  """
  check_students("kdcl", students)
  check_choice("kdcl", "target", target, (*TARGETS, "general"))
  check_positive("kdcl", temperature=temperature)
  check_nonnegative("kdcl", task_weight=task_weight, distill_weight=distill_weight)

  def criterion(logits, teacher, label):
    return Terms(
      task_weight * cross_entropy(logits, label).sum(),
      distill_weight * kl(logits, stop_gradient(teacher), temperature).sum(),
    )

  if target == "general":
    return _general(context, students, criterion, same_init)
  aggregate = TARGETS[target]

  def each_batch(logits, label, step):
    del step
    return criterion(logits, aggregate(logits, label), label)

  return peers(context, students, each_batch, same_init=same_init)


def mean(logits: Float[Array, "N B K"], label: Int[Array, " B"]) -> Float[Array, "B K"]:
  """The mean of the students' logits."""
  del label
  return logits.mean(0)


def naive(logits: Float[Array, "N B K"], label: Int[Array, " B"]) -> Float[Array, "B K"]:
  """For each example the logits of the student with the lowest loss."""
  best = _nll(logits, label).argmin(0)  # [B]
  return jnp.take_along_axis(logits, best[None, :, None], 0)[0]


def minlogit(logits: Float[Array, "N B K"], label: Int[Array, " B"]) -> Float[Array, "B K"]:
  """The elementwise minimum over students of z - z[label]."""
  return (logits - _own(logits, label)).min(0)


def linear(logits: Float[Array, "N B K"], label: Int[Array, " B"]) -> Float[Array, "B K"]:
  """For each example the convex combination of the logits with the lowest loss.

  The loss is convex in the weights. For one pair of students after the other, bisection finds
  the best division of the pair's total weight: exact for two students, coordinate descent for
  more.
  """
  n, batch, classes = logits.shape
  one_hot = jax.nn.one_hot(label, classes)

  def divide(pair, weights):
    """Weights [N, B] with the pair's total weight divided in the best way."""
    i, j = pair
    total, difference = weights[i] + weights[j], logits[i] - logits[j]
    rest = jnp.einsum("nb,nbk->bk", weights.at[i].set(0).at[j].set(total), logits)

    def halve(_, interval):  # share: the part of the pair's weight that student i gets
      low, high = interval
      share = (low + high) / 2
      mixed = rest + (share * total)[:, None] * difference
      slope = ((jax.nn.softmax(mixed) - one_hot) * difference).sum(-1)  # of the loss by share
      rising = slope > 0
      return jnp.where(rising, low, share), jnp.where(rising, share, high)

    low, high = lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros(batch), jnp.ones(batch)))
    share = (low + high) / 2
    return weights.at[i].set(share * total).at[j].set((1 - share) * total)

  def sweep(_, weights):
    for pair in combinations(range(n), 2):
      weights = divide(pair, weights)
    return weights

  start = jnp.full((n, batch), 1 / n)
  weights = lax.fori_loop(0, 1 if n == 2 else SWEEPS, sweep, start)
  return jnp.einsum("nb,nbk->bk", weights, logits)


TARGETS = {"mean": mean, "naive": naive, "linear": linear, "minlogit": minlogit}


def covariance(logits: Float[Array, "N B K"], label: Int[Array, " B"]) -> Float[Array, "N N"]:
  """C_ij = mean_b sum_k (p_i - y)(p_j - y), p = softmax(z)."""
  error = jax.nn.softmax(logits) - jax.nn.one_hot(label, logits.shape[-1])
  return jnp.einsum("ibk,jbk->ij", error, error) / len(label)


def combination(errors: Float[Array, "N N"]) -> Float[Array, " N"]:
  """w = C^-1 1 / (1^T C^-1 1), which sums to one.

  Equal students make C singular, so a thousandth of its mean diagonal is added to the diagonal.
  """
  n = len(errors)
  ridge = 1e-3 * jnp.trace(errors) / n + 1e-12
  weights = jnp.linalg.solve(errors + ridge * jnp.eye(n), jnp.ones(n))
  return weights / weights.sum()


def _general(context, n, criterion, same_init):
  """KDCL with `target="general"`: weights for all examples, computed after every epoch."""
  # `init` and `losses` are replaced below.
  method = peers(context, n, criterion, same_init=same_init)

  def init(key, views):
    memory = {"errors": jnp.zeros((n, n)), "weights": jnp.full(n, 1 / n)}
    return method.init(key, views).with_memory(**memory)

  def losses(learner, views, step, key):
    del step
    label, memory = views.label, learner.memory
    logits, stats = each(context.net, learner.students, views.image, key, train=True)
    teacher = jnp.tensordot(memory["weights"], logits, 1)
    errors = memory["errors"] + stop_gradient(covariance(logits, label))
    learner = learner.with_stats(students=stats).with_memory(errors=errors)
    metrics = {"accuracy": accuracy(logits, label).mean()}
    return criterion(logits, teacher, label), (learner, metrics)

  def new_weights(memory):
    errors = memory["errors"]
    return memory | {"errors": jnp.zeros_like(errors), "weights": combination(errors)}

  def after_step(learner, step, key):
    del key
    epoch_ends = step % context.epoch_steps == 0
    return learner.replace(memory=lax.cond(epoch_ends, new_weights, identity, learner.memory))

  return method._replace(init=init, losses=losses, after_step=after_step)


def _own(logits, label):
  """The label's logit: [N, B, K] -> [N, B, 1]."""
  return jnp.take_along_axis(logits, label[None, :, None], -1)


def _nll(logits, label):
  """The loss of each example: [N, B, K] -> [N, B]."""
  return -_own(jax.nn.log_softmax(logits), label)[..., 0]
