"""OKDPH: online knowledge distillation with parameter hybridization."""

import jax
import jax.numpy as jnp
from jax import lax

from okdph_jax import schedules
from okdph_jax.core import Terms
from okdph_jax.hybridization import dirichlet, fuse, hybridize, uniform
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.methods import peers
from okdph_jax.methods.protocol import Method, one_by_one, whole
from okdph_jax.nn.students import each, run


def okdph(
  context,
  *,
  students=2,
  omega=0.8,
  beta=0.8,
  gamma=0.5,
  temperature=4.0,
  fuse_every="1 epoch",
  fuse_clock="run",
  fuse_with="updated",
  weights="dirichlet",
  alpha=1.0,
  hybrid_gradient=True,
  same_init=True,
):
  """OKDPH (Zhang et al., CVPR 2023, arXiv:2303.14666), Algorithm 1.

      theta_h = sum_m r_m theta_m,  r ~ Dir(alpha);   z_en = (sum_m z_m + z_h) / (M + 1)
      L_m = omega CE(z_m, y) + (1 - omega) CE(z_h, y) + beta KL_T(sg[z_en] -> z_m)
      every `fuse_every`:  theta_m <- gamma theta_h + (1 - gamma) theta_m

  Student m sees view m and the hybrid the last one. The hybrid's loss reaches student m
  through theta_h, scaled by r_m; it is one term of the summed objective. Its batch
  statistics are the mix of the students', and momentum is left alone by fusion.

  Where the authors' release parts ways with the paper, a keyword names the two
  behaviours (the release's second): `weights` "dirichlet" | "uniform";
  `hybrid_gradient` True | False, no gradient through the hybrid; `fuse_with` "updated",
  the hybrid of the updated students | "previous", the one that the step's forward used;
  `fuse_clock` "run", all steps since the start | "epoch", the batches of each epoch from 0.
  `same_init`: one start for all students (both). T = 4 is the release's; the paper
  gives none. Fusion precedes any evaluation: with gamma = 1 and `fuse_every="1 epoch"`
  all readers coincide there.
  """
  net, n = context.net, students
  check(students=n, omega=omega, beta=beta, gamma=gamma, temperature=temperature, alpha=alpha)
  choose("weights", weights, "dirichlet", "uniform")
  choose("fuse_with", fuse_with, "updated", "previous")
  due = fusion_clock(fuse_every, fuse_clock, context.epoch_steps)

  def draw(key):
    return dirichlet(key, n, alpha) if weights == "dirichlet" else uniform(n)

  def init(key, views):
    first, second = jax.random.split(key)
    starts = jnp.stack([first] * n) if same_init else jax.random.split(first, n)
    learner = peers.independent(net, starts, views)
    memory = {"weights": draw(second)}
    if fuse_with == "previous":
      memory["hybrid"] = hybridize(learner.students, memory["weights"])
    return learner.replace(memory=memory)

  def losses(learner, views, step, key):
    del step
    label, key_hybrid = views.label, jax.random.fold_in(key, n)
    hybrid = hybridize(learner.students, learner.memory["weights"])
    if not hybrid_gradient:
      hybrid = lax.stop_gradient(hybrid)
    own, stats = each(net, learner.students, views.image[:n], key, train=True)  # [N, B, K]
    mixed, mixed_stats = run(net, hybrid, views.image[n], key_hybrid, train=True)  # [B, K]
    teacher = lax.stop_gradient((own.sum(0) + mixed) / (n + 1))

    task_loss = omega * cross_entropy(own, label).sum()
    if omega != 1:  # XLA does not fold a product with 0.0: the backward pass would still run
      task_loss += (1 - omega) * cross_entropy(mixed, label)  # shared by all, counted once
    terms = Terms(task_loss, beta * kl(own, teacher, temperature).sum())

    learner = learner.replace(stats=learner.stats | {"students": stats})
    if fuse_with == "previous":
      used = {"params": hybrid["params"], "batch_stats": mixed_stats}
      learner = learner.replace(memory=learner.memory | {"hybrid": lax.stop_gradient(used)})
    metrics = {
      "accuracy": accuracy(own, label).mean(),
      "hybrid_accuracy": accuracy(mixed, label),
    }
    return terms, (learner, metrics)

  def fused(learner):
    hybrid = learner.memory.get("hybrid") or hybridize(
      learner.students, learner.memory["weights"]
    )
    together = fuse(learner.students, hybrid, gamma)
    return learner.replace(
      params=learner.params | {"students": together["params"]},
      stats=learner.stats | {"students": together["batch_stats"]},
    )

  def after_step(learner, step, key):
    learner = learner.replace(memory=learner.memory | {"weights": draw(key)})
    return lax.cond(due(step), fused, lambda learner: learner, learner)

  def hybrids(learner):
    weights = {"hybrid": learner.memory["weights"], "center": uniform(n)}
    return {name: hybridize(learner.students, r) for name, r in weights.items()}

  def predict(learner, image):
    readers = one_by_one(peers.students_logits(net, learner, image))
    for name, variables in hybrids(learner).items():
      readers[name] = run(net, variables, image)[0]
    return readers

  return Method(
    views=n + 1,
    init=init,
    losses=losses,
    predict=predict,
    ensembles=lambda learner, image: peers.mean_of(peers.students_logits(net, learner, image)),
    networks=lambda learner: whole(learner) | hybrids(learner),
    after_step=after_step,
  )


def fusion_clock(fuse_every, fuse_clock, epoch_steps):
  """Whether students are fused at the end of a step: `due(t)`, t steps done."""
  choose("fuse_clock", fuse_clock, "run", "epoch")
  count, unit = schedules.parse(fuse_every)
  interval = schedules.steps(fuse_every, epoch_steps)
  if fuse_clock == "run":
    return lambda t: t % interval == 0
  if unit == "step":  # batches of the epoch from 0: the first one fuses
    return lambda t: (t - 1) % epoch_steps % interval == 0
  return lambda t: (t % epoch_steps == 0) & ((t // epoch_steps - 1) % count == 0)


def choose(name, value, *choices):
  if value not in choices:
    raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def check(*, students, omega, beta, gamma, temperature, alpha):
  if students < 2:
    raise ValueError(f"okdph hybridizes at least 2 students; method.students is {students}")
  for name, value in {"omega": omega, "gamma": gamma}.items():
    if not 0 <= value <= 1:
      raise ValueError(f"{name}={value} is outside [0, 1]")
  if beta < 0:
    raise ValueError(f"beta={beta} is negative; give a weight of at least 0")
  for name, value in {"temperature": temperature, "alpha": alpha}.items():
    if not value > 0:
      raise ValueError(f"{name}={value} must be positive")
