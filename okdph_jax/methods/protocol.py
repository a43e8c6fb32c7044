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
  """What a method is built from, besides its options."""

  net: nn.Module  # net(x [B, H, W, C], train) -> logits [B, K]
  classes: int  # K
  epoch_steps: int  # steps in an epoch
  epochs: int  # epochs of the whole run
  teacher: tuple[nn.Module, Variables] | None = None  # an offline teacher


class InitFn(Protocol):
  def __call__(self, key: Key[Array, ""], views: Float[Array, "V B H W C"], /) -> Learner:
    """The learner before the first step. Only the shape of `views` is used."""
    ...


class LossesFn(Protocol):
  def __call__(
    self, learner: Learner, views: Views, step: Step, key: Key[Array, ""], /
  ) -> tuple[Terms, tuple[Learner, Metrics]]:
    """The objective of one batch, differentiated with respect to `learner.params`.

    `step` is the number of steps done. Returns the terms, and (the learner with new batch
    statistics and memory, metrics to log). Metrics are scalars by name, "accuracy" among them;
    the training step adds "loss", "task" and "distill".
    """
    ...


class NetworksFn(Protocol):
  def __call__(self, learner: Learner, /) -> dict[str, Variables]:
    """The single networks: {reader: the variables of one whole `context.net`}."""
    ...


class PredictFn(Protocol):
  def __call__(self, learner: Learner, image: Float[Array, "B H W C"], /) -> Logits:
    """{reader: logits}, computed with running batch statistics. image: normalised."""
    ...


class GradientFn(Protocol):
  def __call__(
    self, objective: Objective, params: PyTree, /
  ) -> tuple[PyTree, tuple[Learner, Metrics]]:
    """(the gradient, in the form that `optimizer` takes; the auxiliary output of `losses`)."""
    ...


class ScheduleFn(Protocol):
  def __call__(self, schedule: Schedule, /) -> Schedule:
    """The learning rate as a function of the step, given the configured one."""
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
    """The optax transformation `rule(schedule, momentum=, weight_decay=, nesterov=)`.

    rule: SGD by default. A wrapper passes another to change the update; the method's weight
    decays and the other wrappers still apply. weight_decay: a number, or one per subtree of
    the parameters.
    """
    ...


class AfterStepFn(Protocol):
  def __call__(self, learner: Learner, step: Step, key: Key[Array, ""], /) -> Learner:
    """The learner after the update of its parameters. `step` counts the steps done, from 1."""
    ...


class BeforeEvalFn(Protocol):
  def __call__(self, learner: Learner, batches: Iterable[Views], /) -> Learner:
    """The learner to evaluate. Training keeps its `memory` and discards the rest.

    batches: an iterable over the training set, which may be iterated over several times.
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
  """The first argument: the default of `schedule`, `after_step` and `before_eval`."""
  return x


def no_readers(learner: Learner, image: Float[Array, "B H W C"]) -> Logits:
  """The default of `ensembles`."""
  del learner, image
  return {}


class Method(NamedTuple):
  """A method as pure functions. The type of each field documents it."""

  views: int  # V: the number of views of each image that the method trains on
  init: InitFn
  losses: LossesFn
  networks: NetworksFn  # the single networks
  predict: PredictFn  # their logits: `run_networks`, or something faster
  ensembles: PredictFn = no_readers  # the logits of readers that run several networks
  gradient: GradientFn = plain_gradient
  schedule: ScheduleFn = identity
  optimizer: OptimizerFn = plain_optimizer
  after_step: AfterStepFn = identity
  before_eval: BeforeEvalFn = identity
  # Students share no parameters and no loss: SAM's norm is taken per student.
  independent: bool = False
  # Prefixes of readers that depend on the memory: `ema` and `swa` do not average them.
  in_memory: tuple[str, ...] = ()


def run_networks(net: nn.Module, networks: NetworksFn) -> PredictFn:
  """A `predict` that runs each of the `networks` on the images."""

  def predict(learner, image):
    return {
      reader: run(net, variables, image)[0] for reader, variables in networks(learner).items()
    }

  return predict


def unstack(stack: PyTree, name: str = "student") -> dict[str, PyTree]:
  """{"student_0": [...], ...} from an array, or a tree of arrays, [N, ...]."""
  n = jax.tree.leaves(stack)[0].shape[0]
  return {f"{name}_{i}": jax.tree.map(itemgetter(i), stack) for i in range(n)}


def add_averaged_readers(
  method: Method, prefix: str, averaged: Callable[[Learner], Learner]
) -> Method:
  """`method` with a reader "prefix_NAME" of `averaged(learner)` for each reader NAME.

  Readers that depend on the memory, see `Method.in_memory`, have none.
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
  """`method` with networks that run by `execution` in training; evaluation is unchanged."""

  def within(function):
    def run(*arguments):
      with executed(execution):
        return function(*arguments)

    return run

  return method._replace(losses=within(method.losses), after_step=within(method.after_step))


MOST_STUDENTS = 100  # the compiled program grows with each
LARGEST, SMALLEST = 1e30, 1e-30  # float32 holds these and their products with ordinary numbers


def check_students(name: str, students: int, least: int = 2) -> None:
  """Raises ValueError, in one line, for a number of students that the method cannot have."""
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
  """Raises ValueError, in one line, for an option that is not positive, or too large."""
  for option, value in options.items():
    if not is_traced(value) and not SMALLEST <= value <= LARGEST:
      raise ValueError(f"{name}: {option}={value} must lie in [{SMALLEST:g}, {LARGEST:g}]")


def check_nonnegative(name: str, **options: Number) -> None:
  """Raises ValueError, in one line, for an option that is negative, or too large."""
  for option, value in options.items():
    if not is_traced(value) and not 0 <= value <= LARGEST:
      raise ValueError(f"{name}: {option}={value} must lie in [0, {LARGEST:g}]")


def check_fraction(name: str, **options: Number) -> None:
  """Raises ValueError, in one line, for an option outside [0, 1]."""
  for option, value in options.items():
    if not is_traced(value) and not 0 <= value <= 1:
      raise ValueError(f"{name}: {option}={value} is outside [0, 1]")


def check_choice(name: str, option: str, value: str, choices: Iterable[str]) -> None:
  """Raises ValueError, in one line, for a value that is not one of the choices."""
  if value not in choices:
    raise ValueError(f"{name}: {option}={value!r} is not one of {', '.join(choices)}")
