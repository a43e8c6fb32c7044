"""OKDPH: online knowledge distillation with parameter hybridization."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from okdph_jax import durations
from okdph_jax.core import Number, Terms, is_traced
from okdph_jax.hybridization import dirichlet, fuse, uniform
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.methods import peers
from okdph_jax.methods.protocol import (
  Context,
  Method,
  Step,
  check_choice,
  check_fraction,
  check_nonnegative,
  check_positive,
  check_students,
  identity,
)
from okdph_jax.nn.students import each, mix, run


def okdph(
  context: Context,
  *,
  students: int = 2,
  omega: float = 0.8,
  beta: float = 0.8,
  gamma: float = 0.5,
  temperature: float = 4.0,
  fuse_every: str = "1 epoch",
  fuse_clock: str = "run",
  fuse_with: str = "updated",
  weights: str = "dirichlet",
  alpha: float | tuple = 1.0,
  hybrid_gradient: bool = True,
  same_init: bool = True,
  hybrid_teaches: bool = True,
) -> Method:
  """OKDPH (Zhang et al., CVPR 2023, arXiv:2303.14666), Algorithm 1.

      theta_h = sum_m r_m theta_m,  r ~ Dir(alpha);   z_en = (sum_m z_m + z_h) / (M + 1)
      L_m = omega CE(z_m, y) + (1 - omega) CE(z_h, y) + beta KL_T(sg[z_en] -> z_m)
      every `fuse_every`:  theta_m <- gamma theta_h + (1 - gamma) theta_m

  Student m has view m, the hybrid the last view. The gradient of the hybrid's loss reaches
  student m through theta_h, scaled by r_m; the summed objective contains this loss once. The
  hybrid's batch statistics are the same weighted means. Fusion does not change the momentum.

  Where the authors' release differs from the paper, an option has the two behaviours, by
  default the paper's:

  - `weights`: "dirichlet"; the release has "uniform", r_m = 1 / M.
  - `hybrid_gradient`: True; the release has False, no gradient through theta_h.
  - `fuse_with`: "updated", the hybrid of the updated students; the release has "previous", the
    hybrid of the step's forward pass, which is then also the reader "hybrid".
  - `fuse_clock`: "run", counting all steps of the run; the release has "epoch", counting the
    batches of each epoch from 0.

  Both start from equal students, `same_init=True`. T = 4 is the release's; the paper states
  none. `alpha` is one number, or one per student. Fusion is part of the step: with gamma = 1
  and `fuse_every="1 epoch"` all students are equal at every evaluation. `hybrid_teaches=False`
  leaves the hybrid out of the target, z_en = sum_m z_m / M, for ablations (paper, Table 5).
  """
  net, n = context.net, students
  check_students("okdph", n)
  check_fraction("okdph", omega=omega, gamma=gamma)
  check_nonnegative("okdph", beta=beta)
  check_positive("okdph", temperature=temperature)
  check_alpha(alpha, n)
  check_choice("okdph", "weights", weights, ("dirichlet", "uniform"))
  check_choice("okdph", "fuse_with", fuse_with, ("updated", "previous"))
  due = fusion_clock(fuse_every, fuse_clock, context.epoch_steps)

  def draw(key):
    return dirichlet(key, n, alpha) if weights == "dirichlet" else uniform(n)

  def init(key, views):
    first, second = jax.random.split(key)
    starts = jnp.stack([first] * n) if same_init else jax.random.split(first, n)
    learner = peers.init_networks(net, starts, views)
    memory: dict[str, Any] = {"weights": draw(second)}
    if fuse_with == "previous":
      memory["hybrid"] = mix(learner.students, memory["weights"])
    return learner.with_memory(**memory)

  def losses(learner, views, step, key):
    del step
    label, key_hybrid = views.label, jax.random.fold_in(key, n)
    hybrid = mix(learner.students, learner.memory["weights"])
    if not hybrid_gradient:
      hybrid = lax.stop_gradient(hybrid)
    own, stats = each(net, learner.students, views.image[:n], key, train=True)  # [N, B, K]
    mixed, mixed_stats = run(net, hybrid, views.image[n], key_hybrid, train=True)  # [B, K]
    ensemble = (own.sum(0) + mixed) / (n + 1) if hybrid_teaches else own.mean(0)
    teacher = lax.stop_gradient(ensemble)

    task_loss = omega * cross_entropy(own, label).sum()
    if is_traced(omega) or omega != 1:  # times 0.0, XLA would still run the backward pass
      task_loss += (1 - omega) * cross_entropy(mixed, label)  # once, not per student
    terms = Terms(task_loss, beta * kl(own, teacher, temperature).sum())

    learner = learner.with_stats(students=stats)
    if fuse_with == "previous":
      previous = {"params": hybrid["params"], "batch_stats": mixed_stats}
      learner = learner.with_memory(hybrid=lax.stop_gradient(previous))
    metrics = {
      "accuracy": accuracy(own, label).mean(),
      "hybrid_accuracy": accuracy(mixed, label),
    }
    return terms, (learner, metrics)

  def hybrid_of(learner):
    return learner.memory.get("hybrid") or mix(learner.students, learner.memory["weights"])

  def fused(learner):
    return learner.with_students(fuse(learner.students, hybrid_of(learner), gamma))

  def after_step(learner, step, key):
    learner = learner.with_memory(weights=draw(key))
    return lax.cond(due(step), fused, identity, learner)

  def hybrids(learner):
    return {"hybrid": hybrid_of(learner), "center": mix(learner.students, uniform(n))}

  return Method(
    views=n + 1,
    init=init,
    losses=losses,
    **peers.readers(net, hybrids),
    after_step=after_step,
    in_memory=("hybrid",) if fuse_with == "previous" else (),
  )


def check_alpha(alpha: Number | Sequence[float], students: int) -> None:
  """Raises ValueError, in one line, unless alpha is a positive number, or one per student."""
  several = isinstance(alpha, Sequence)
  if several and len(alpha) != students:
    raise ValueError(
      f"okdph: alpha={tuple(alpha)} has {len(alpha)} numbers for {students} students; give one "
      "number per student, or one for all"
    )
  for one in alpha if several else (alpha,):
    check_positive("okdph", alpha=one)


def fusion_clock(fuse_every: str, fuse_clock: str, epoch_steps: int) -> Callable[[Step], Any]:
  """`due(t)`: whether the students are fused at the end of step t, counted from 1."""
  check_choice("okdph", "fuse_clock", fuse_clock, ("run", "epoch"))
  count, unit = durations.parse(fuse_every)
  interval = durations.steps(fuse_every, epoch_steps)
  if fuse_clock == "run":
    return lambda t: t % interval == 0
  if unit == "step":  # batches count from 0, so the first batch of an epoch fuses
    return lambda t: (t - 1) % epoch_steps % interval == 0
  return lambda t: (t % epoch_steps == 0) & ((t // epoch_steps - 1) % count == 0)
