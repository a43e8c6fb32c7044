"""What a method is: a tuple of pure functions. To change one, wrap it."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import jax

from okdph_jax import optimizers
from okdph_jax.core import Terms


class Context(NamedTuple):
  """The surroundings a method is built in: numbers and networks, no files and no config."""

  net: Any  # a Linen module: net(x [B, H, W, C], train) -> logits [B, K]
  classes: int  # K
  epoch_steps: int  # steps in an epoch
  epochs: int  # epochs of the whole run
  teacher: Any = None  # (net, variables) of an offline teacher, or None


def descend(objective, params):
  """The plain gradient of task + distill: (grads, aux)."""

  def total(params):
    terms, aux = objective(params)
    return terms.task + terms.distill, aux

  return jax.grad(total, has_aux=True)(params)


def descent(schedule, *, momentum, weight_decay, rule=optimizers.sgd):
  """The plain optimizer: `rule(schedule, momentum=, weight_decay=)`.

  `rule` is how a wrapper changes the update without undoing another's schedule or a
  method's weight decay per subtree: DOT hands the method its own rule.
  """
  return rule(schedule, momentum=momentum, weight_decay=weight_decay)


def keep(learner, *_):
  return learner


def as_given(schedule):
  return schedule


def one_by_one(stack, name="student"):
  """The rows of a stack, an array or a tree [N, ...], as readers: {"student_0": [...], ...}."""
  n = jax.tree.leaves(stack)[0].shape[0]
  return {f"{name}_{i}": jax.tree.map(itemgetter(i), stack) for i in range(n)}


def whole(learner):
  return one_by_one(learner.students)


def nothing(learner, image):
  del learner, image
  return {}


class Method(NamedTuple):
  """The protocol. Shapes: image [B, H, W, C] float32, logits [B, K].

  `losses` returns `Terms, (learner, metrics)`: the learner with new batch statistics
  (and memory), and scalars by name for the log; `step` adds "loss", "task", "distill".
  What `before_eval` returns is evaluated and then forgotten.
  """

  views: int  # V: how many views of each image it looks at
  init: Callable  # (key, views [V, B, H, W, C])     -> Learner
  losses: Callable  # (learner, views, step, key)    -> Terms, (Learner, metrics)
  predict: Callable  # (learner, image)              -> {reader: logits}, single networks
  ensembles: Callable = nothing  # (learner, image)  -> {reader: logits}, the rest
  networks: Callable = whole  # (learner) -> {reader: its Linen variables}, as in `predict`
  gradient: Callable = descend  # (objective, params) -> grads, (Learner, metrics)
  schedule: Callable = as_given  # (learning rate by step) -> the one it descends with
  optimizer: Callable = descent  # (schedule, *, momentum, weight_decay) -> optax transform
  after_step: Callable = keep  # (learner, step, key) -> Learner
  before_eval: Callable = keep  # (learner, batches of Views) -> Learner
  independent: bool = False  # students share no parameters and no loss: a norm per student


def add_averaged_readers(read, other, prefix):
  """The readers of `read`, and under `prefix` the same readers of `other(learner)`."""

  def both(learner, *image):
    more = read(other(learner), *image)
    return read(learner, *image) | {f"{prefix}_{name}": row for name, row in more.items()}

  return both


def remember(learner, name, value):
  """`learner` with `value` under `memory[name]`, beside what the method itself remembers."""
  if name in learner.memory:
    raise ValueError(f"{name} is already around this method; name it once in wrappers")
  return learner.replace(memory=learner.memory | {name: value})


def check(name, *, students, temperature=1.0):
  """A one-line ValueError for what no method of several students can work with."""
  if students < 2:
    raise ValueError(f"{name} needs at least 2 students; method.students is {students}")
  if not temperature > 0:
    raise ValueError(f"{name}: temperature={temperature} must be positive")


__all__ = [
  "Method",
  "Context",
  "Terms",
  "as_given",
  "add_averaged_readers",
  "check",
  "descend",
  "descent",
  "keep",
  "nothing",
  "one_by_one",
  "remember",
  "whole",
]
