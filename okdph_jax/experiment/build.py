"""Builds the functions and numbers of a run from its config, before anything is compiled."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from okdph_jax import data, models, schedules, views
from okdph_jax.core import Learner, Views
from okdph_jax.errors import nearest
from okdph_jax.experiment.config import check, check_names, check_type
from okdph_jax.experiment.teacher import pretrained, teacher
from okdph_jax.methods import METHODS, WRAPPERS, assemble
from okdph_jax.methods.protocol import Context, Method, Schedule, trained_as
from okdph_jax.nn import onednn
from okdph_jax.nn.execution import Execution
from okdph_jax.runtime import host
from okdph_jax.trained_network import TrainedNetwork
from okdph_jax.training.step import Augment

Numbers = dict[str, Any]  # the float options; in the jitted step they may be tracers


class Experiment(NamedTuple):
  """The functions and numbers of a run."""

  net: nn.Module
  method: Method
  learner: Learner  # shapes only
  single: tuple[str, ...]  # names of the readers that are single networks
  schedule: Schedule
  numbers: Numbers
  parts: Callable[[Numbers], tuple[Method, optax.GradientTransformation]]
  augment: Augment  # the training views
  test_view: Augment
  epoch_steps: int
  steps: int
  teacher: str | None  # its origin, in one line
  start: str | None  # the origin of the initial variables, if not random


def configure_jax(config: ConfigDict) -> None:
  """Prepares JAX for a run of this config; call it before JAX is used, see `host.configure`."""
  parameters = 0
  ours = config.network in models.NETS  # one of your own may not take such images
  if ours and config.devices is None:
    net = models.build(config.network, 10, config.network_options)
    parameters = models.parameters(net, (32, 32, 3))
  host.configure(config.devices, config.batch_size // config.accumulate, parameters)


def build(
  config: ConfigDict,
  dataset: data.Dataset,
  planned_epochs: int | None = None,
  taught_by: TrainedNetwork | None = None,
) -> Experiment:
  """The `Experiment` of a checked config.

  planned_epochs: of an extended run, the epochs before; schedules still refer to them.
  taught_by: a teacher in place of `config.teacher`.

  Raises:
    ValueError: in one line, for options that do not fit together, or do not fit the data.
  """
  check_options(config)
  epochs = planned_epochs or config.epochs
  epoch_steps = data.epoch_steps(len(dataset.train), config.batch_size)
  net = models.build(config.network, dataset.classes, config.network_options)
  taught_by = taught_by or teacher(config, dataset)
  started, start = pretrained(config, net, dataset)
  context = Context(
    started,
    dataset.classes,
    epoch_steps,
    epochs,
    taught_by and (taught_by.module, taught_by.variables),
  )
  numbers = hyperparameters(config, epochs, epoch_steps)
  execution = execution_of(config)

  def schedule_of(method: Method, numbers: Numbers) -> Any:
    rates: Any = schedules.multistep(numbers["learning_rate"], numbers["milestones"])
    rates = method.schedule(rates)
    return schedules.held(rates, planned_epochs * epoch_steps - 1) if planned_epochs else rates

  def parts(numbers):
    method = assemble(
      context._replace(epochs=numbers["epochs"]),
      dict(config.method) | numbers["method"],
      [dict(w) | own for w, own in zip(config.wrappers, numbers["wrappers"], strict=True)],
    )
    schedule = schedule_of(method, numbers)
    rates = {name: numbers[name] for name in ("momentum", "weight_decay")}
    optimizer = method.optimizer(schedule, nesterov=config.nesterov, **rates)
    return trained_as(method, execution), optimizer

  method, _ = parts(numbers)
  check_views(config, method)
  views.check((*config.views, config.test_view), dataset.image_shape)
  learner, single = check_shapes(config.network, method, dataset)
  check_groups(config, learner)
  return Experiment(
    net=net,
    method=method,
    learner=learner,
    single=single,
    schedule=schedule_of(method, numbers),
    numbers=numbers,
    parts=parts,
    augment=views.make(config.views, dataset.mean, dataset.std),
    test_view=views.make((config.test_view,), dataset.mean, dataset.std),
    epoch_steps=epoch_steps,
    steps=epoch_steps * config.epochs,
    teacher=taught_by and taught_by.origin,
    start=start,
  )


def execution_of(config: ConfigDict) -> Execution:
  """How the training step runs its networks; ValueError, in one line, if it cannot."""
  groups, compute = config.student_groups, config.compute
  mesh = host.mesh(config.devices, groups) if groups > 1 else None
  if mesh and onednn.choice().onednn:
    raise ValueError(
      "config.student_groups is for accelerators; on a CPU set the "
      f"environment variable {onednn.VARIABLE}=xla"
    )
  if compute == "bfloat16" and jax.default_backend() == "cpu":
    compute = "products"  # converting all activations would cost more than it saves
  return Execution(compute, config.batch_norm_images, mesh)


def hyperparameters(config: ConfigDict, epochs: int, epoch_steps: int) -> Numbers:
  """The numbers of a config that the compiled step takes as arguments."""
  return {
    "learning_rate": config.learning_rate,
    "momentum": config.momentum,
    "weight_decay": config.weight_decay,
    "milestones": schedules.milestones(
      config.milestones, epochs=epochs, epoch_steps=epoch_steps
    ),
    "epochs": epochs,
    "method": _floats(config.method),
    "wrappers": [_floats(options) for options in config.wrappers],
  }


def _floats(options):
  return {name: value for name, value in options.items() if isinstance(value, float)}


def check_without_data(config: ConfigDict) -> None:
  """Raises ValueError, in one line, for a config that cannot be built for any data."""
  check(config)
  check_options(config)
  classes = len(config.method.get("distances") or (0, 1))  # the one option with a class axis
  net = models.build(config.network, classes, config.network_options)
  taught = config.teacher or config.generations > 1
  context = Context(net, classes, 1, config.epochs, teacher=(net, {}) if taught else None)
  check_views(config, assemble(context, config.method, config.wrappers))


def check_views(config: ConfigDict, method: Method) -> None:
  """Raises ValueError for a wrong number of views; repeats a single view for all networks."""
  if len(config.views) == 1:
    config.views = config.views * method.views
  if len(config.views) != method.views:
    raise ValueError(
      f"{described(config)} needs {method.views} view{'s' * (method.views != 1)} (one for each "
      f"network it runs), but config.views has {len(config.views)} "
      f"({', '.join(map(repr, config.views))}); give {method.views}, or one for all"
    )


def check_options(config: ConfigDict) -> None:
  """Raises ValueError, in one line, for options that the method or a wrapper does not have."""
  _check_call(METHODS, "method", dict(config.method))
  for options in config.wrappers:
    _check_call(WRAPPERS, "wrapper", dict(options))


def _check_call(table, kind, options):
  name = options.pop("name", None)
  if name not in table:
    raise ValueError(
      f"unknown {kind} {name!r}{nearest(str(name), table)} (there are {', '.join(table)})"
    )
  parameters = inspect.signature(table[name]).parameters.values()
  known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  check_names(options, known, f"{kind} {name}")
  for option, value in options.items():
    default, stated = known[option].default, known[option].annotation
    if default is not None:
      wanted = type(default) if stated is inspect.Parameter.empty else stated
      check_type(f"{kind} {name}'s {option}", value, wanted)


def check_groups(config: ConfigDict, learner: Learner) -> None:
  """Raises ValueError, in one line, if `student_groups` does not divide the networks."""
  stacked = jax.tree.leaves(learner.params["students"])[0].shape[0]
  if stacked % config.student_groups:
    raise ValueError(
      f"config.student_groups={config.student_groups} does not divide the {stacked} networks "
      f"of {described(config)}; choose a number that does"
    )


def described(config: ConfigDict) -> str:
  """The method in words: "okdph with 2 students"."""
  students = config.method.get("students", 1)
  return config.method.name + (f" with {students} students" if students > 1 else "")


def check_shapes(
  network: str, method: Method, dataset: data.Dataset
) -> tuple[Learner, tuple[str, ...]]:
  """Traces a method: (shapes of the learner, names of the single networks).

  Raises:
    ValueError: in one line, for a network that does not fit the images or the classes.
  """
  shape = (2, *dataset.image_shape)
  shape_of: Any = jax.ShapeDtypeStruct  # stands for an array
  views = shape_of((method.views, *shape), jnp.float32)
  image = shape_of(shape, jnp.float32)

  def shapes_of(function, *arguments):
    try:
      return jax.eval_shape(function, *arguments)
    except Exception as error:  # a network may raise anything
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise ValueError(
        f"network {network!r} fails on images {list(shape)}: {reason}"
      ) from error

  learner = shapes_of(method.init, jax.random.key(0), views)
  single = shapes_of(method.networks, learner)
  logits = shapes_of(method.predict, learner, image)
  logits |= shapes_of(method.ensembles, learner, image)
  for name, row in logits.items():
    if row.shape != (2, dataset.classes):
      raise ValueError(
        f"network {network!r} returns {name} {list(row.shape)} for images {list(shape)}; it "
        f"must return logits [2, {dataset.classes}]"
      )
  if ":" in network:  # a user's network may fail only with train=True
    label, step = shape_of((2,), jnp.int32), shape_of((), jnp.int32)
    shapes_of(method.losses, learner, Views(views, label), step, jax.random.key(0))
  return learner, tuple(single)
