"""What a method is: a tuple of pure functions. To change one, wrap it."""

from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import jax
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from okdph_jax import optimizers
from okdph_jax.core import Learner, Number, Terms, Variables, Views, is_traced
from okdph_jax.nn.execution import Execution, executed
from okdph_jax.nn.students import run
from okdph_jax.schedules import Step

Metrics = dict[str, Float[Array, ""]]
Logits = dict[str, Float[Array, "B K"]]  # by reader
Objective = Callable[[PyTree], tuple[Terms, tuple[Learner, Metrics]]]  # of the parameters
Rule = Callable[..., optax.GradientTransformation]  # as `optimizers.sgd`
Schedule = Callable[[Step], Float[Array, ""] | float]  # step -> learning rate


class Context(NamedTuple):
  """What a method is built for: networks and numbers, no files and no config."""

  net: nn.Module  # net(x [B, H, W, C], train) -> logits [B, K]
  classes: int  # K
  epoch_steps: int  # steps in an epoch
  epochs: int  # epochs of the whole run
  teacher: tuple[nn.Module, Variables] | None = None  # an offline teacher


class InitFn(Protocol):
  def __call__(self, key: Key[Array, ""], views: Float[Array, "V B H W C"], /) -> Learner:
    """The learner before the first step. Of `views` only the shapes are used."""
    ...


class LossesFn(Protocol):
  def __call__(
    self, learner: Learner, views: Views, step: Step, key: Key[Array, ""], /
  ) -> tuple[Terms, tuple[Learner, Metrics]]:
    """The objective of one batch, differentiated with respect to `learner.params`.

    `step` counts the steps done. Returns the learner with new batch statistics and memory,
    and scalars by name for the log: "accuracy" at least, to which the training step adds
    "loss", "task" and "distill".
    """
    ...


class NetworksFn(Protocol):
  def __call__(self, learner: Learner, /) -> dict[str, Variables]:
    """The single networks: {reader: the variables of one whole `context.net`}."""
    ...


class PredictFn(Protocol):
  def __call__(self, learner: Learner, image: Float[Array, "B H W C"], /) -> Logits:
    """The logits of every reader, with running batch statistics. image: normalised."""
    ...


class GradientFn(Protocol):
  def __call__(
    self, objective: Objective, params: PyTree, /
  ) -> tuple[PyTree, tuple[Learner, Metrics]]:
    """The gradient to descend with, in the form that `optimizer` takes; and `losses`' rest."""
    ...


class ScheduleFn(Protocol):
  def __call__(self, schedule: Schedule, /) -> Schedule:
    """The learning rate by step, made from the configured one."""
    ...


class OptimizerFn(Protocol):
  def __call__(
    self,
    schedule: optax.ScalarOrSchedule,
    *,
    momentum: float,
    weight_decay: Any,
    nesterov: bool = ...,
    rule: Rule = ...,
  ) -> optax.GradientTransformation:
    """`rule(schedule, momentum=, weight_decay=, nesterov=)` is the optax transformation.

    The rule is SGD by default. `weight_decay` is a number, or one per subtree of the
    parameters. By `rule` a wrapper changes the update and keeps the method's weight decay per
    subtree and all other wrappers.
    """
    ...


class AfterStepFn(Protocol):
  def __call__(self, learner: Learner, step: Step, key: Key[Array, ""], /) -> Learner:
    """What follows the update of the parameters; `step` counts the steps done, 1 at first."""
    ...


class BeforeEvalFn(Protocol):
  def __call__(self, learner: Learner, batches: Iterable[Views], /) -> Learner:
    """What is evaluated in place of `learner`; training goes on with its memory alone.

    So what the memory keeps of the evaluation can be loaded from the checkpoint. batches: a
    pass over the training set at each iteration, for those that need it.
    """
    ...


def plain_gradient(
  objective: Objective, params: PyTree
) -> tuple[PyTree, tuple[Learner, Metrics]]:
  """The gradient of task + distill."""

  def total(params):
    terms, aux = objective(params)
    return terms.task + terms.distill, aux

  return jax.grad(total, has_aux=True)(params)


def plain_optimizer(
  schedule: optax.ScalarOrSchedule,
  *,
  momentum: float,
  weight_decay: Any,
  nesterov: bool = False,
  rule: Rule = optimizers.sgd,
) -> optax.GradientTransformation:
  """`rule` with these options."""
  return rule(schedule, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def identity(x: Any, *_: Any) -> Any:
  """The default of the hooks: their first argument, unchanged."""
  return x


def no_readers(learner: Learner, image: Float[Array, "B H W C"]) -> Logits:
  del learner, image
  return {}


class Method(NamedTuple):
  """The protocol; each field's type says what it takes and returns."""

  views: int  # V: how many views of each image the method trains on
  init: InitFn
  losses: LossesFn
  networks: NetworksFn  # the single networks
  predict: PredictFn  # their logits: `run_networks`, or the same faster
  ensembles: PredictFn = no_readers  # the logits of what takes more than one network
  gradient: GradientFn = plain_gradient
  schedule: ScheduleFn = identity
  optimizer: OptimizerFn = plain_optimizer
  after_step: AfterStepFn = identity
  before_eval: BeforeEvalFn = identity
  independent: bool = (
    False  # students share no parameters and no loss: SAM's norm is per student
  )
  in_memory: tuple[
    str, ...
  ] = ()  # how the readers begin that an average of weights leaves alone


def run_networks(net: nn.Module, networks: NetworksFn) -> PredictFn:
  """`predict` as it follows from `networks`: each network is run on the images."""

  def predict(learner, image):
    return {
      reader: run(net, variables, image)[0] for reader, variables in networks(learner).items()
    }

  return predict


def unstack(stack: PyTree, name: str = "student") -> dict[str, PyTree]:
  """The entries of a stack, an array or a tree [N, ...], as {"student_0": [...], ...}."""
  n = jax.tree.leaves(stack)[0].shape[0]
  return {f"{name}_{i}": jax.tree.map(itemgetter(i), stack) for i in range(n)}


def add_averaged_readers(
  method: Method, prefix: str, averaged: Callable[[Learner], Learner]
) -> Method:
  """`method` with the readers of `averaged(learner)` too, "prefix_NAME" beside each NAME.

  Readers that lie in the memory are the same in both, and stay alone.
  """

  def doubled(read, learner, *image):
    more = read(averaged(learner), *image)
    return read(learner, *image) | {
      f"{prefix}_{name}": x for name, x in more.items() if not name.startswith(in_memory)
    }

  in_memory = method.in_memory
  return method._replace(
    in_memory=(*in_memory, f"{prefix}_"),
    networks=partial(doubled, method.networks),
    predict=partial(doubled, method.predict),
    ensembles=partial(doubled, method.ensembles),
  )


def trained_as(method: Method, execution: Execution) -> Method:
  """`method` whose networks run so in training; evaluated they run as always."""

  def within(function):
    def run(*arguments):
      with executed(execution):
        return function(*arguments)

    return run

  return method._replace(losses=within(method.losses), after_step=within(method.after_step))


MOST_STUDENTS = 100  # each is traced, and compiled
LARGEST, SMALLEST = 1e30, 1e-30  # numbers that float32 holds, and so do their products


def check_students(name: str, students: int, least: int = 2) -> None:
  """A one-line ValueError for a number of students that a method cannot have."""
  if students < least:
    plural = "s" * (least > 1)
    raise ValueError(
      f"{name} needs at least {least} student{plural}; method.students is {students}"
    )
  if students > MOST_STUDENTS:
    raise ValueError(
      f"{name} trains at most {MOST_STUDENTS} students; method.students is {students}"
    )


def check_positive(name: str, **options: Number) -> None:
  """A one-line ValueError for an option of the method `name` that is not a number above 0."""
  for option, value in options.items():
    if not is_traced(value) and not SMALLEST <= value <= LARGEST:
      raise ValueError(f"{name}: {option}={value} must lie in [{SMALLEST:g}, {LARGEST:g}]")


def check_nonnegative(name: str, **options: Number) -> None:
  """A one-line ValueError for an option that is negative, too large or not a number."""
  for option, value in options.items():
    if not is_traced(value) and not 0 <= value <= LARGEST:
      raise ValueError(f"{name}: {option}={value} must lie in [0, {LARGEST:g}]")


def check_fraction(name: str, **options: Number) -> None:
  """A one-line ValueError for an option outside [0, 1]."""
  for option, value in options.items():
    if not is_traced(value) and not 0 <= value <= 1:
      raise ValueError(f"{name}: {option}={value} is outside [0, 1]")


def check_choice(name: str, option: str, value: str, choices: Iterable[str]) -> None:
  """A one-line ValueError for a value that is not one of the choices."""
  if value not in choices:
    raise ValueError(f"{name}: {option}={value!r} is not one of {', '.join(choices)}")
