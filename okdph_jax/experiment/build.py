"""What a config means: checked, and built, before anything is compiled."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from okdph_jax import data, models, schedules, views
from okdph_jax.core import Learner
from okdph_jax.errors import nearest
from okdph_jax.experiment.config import check_names, check_type
from okdph_jax.experiment.teacher import data_signature, finished
from okdph_jax.methods import METHODS, WRAPPERS
from okdph_jax.methods.protocol import Context, Method
from okdph_jax.nn.students import run
from okdph_jax.training import logbook
from okdph_jax.training.checkpoint import best_learner


class Experiment(NamedTuple):
  """A config and its data, as functions and numbers."""

  net: Any
  method: Method
  learner: Learner  # shapes alone
  single: tuple  # names of the readers that are one network
  schedule: Callable  # step -> learning rate
  tx: Any
  augment: Callable  # the training views
  look: Callable  # the test view
  epoch_steps: int
  steps: int


def build(config, dataset):
  """The experiment of a checked config; ValueError, in one line, where it cannot be."""
  epoch_steps = data.epoch_steps(len(dataset.train), config.batch_size)
  net = models.build(config.network, dataset.classes)
  taught_by = teacher(config.teacher, dataset) if config.teacher else None
  method = assemble(
    config, Context(net, dataset.classes, epoch_steps, config.epochs, taught_by)
  )
  if len(config.views) == 1:  # one for all
    config.views = config.views * method.views
  if len(config.views) != method.views:
    raise ValueError(
      f"{described(config)} looks at {method.views} view{'s' * (method.views != 1)} "
      f"(one for each network it runs); config.views has {len(config.views)} "
      f"({', '.join(map(repr, config.views))}): give {method.views}, or one for all"
    )
  views.check((*config.views, config.test_view), dataset.image_shape)
  learner, single = check_shapes(config.network, method, dataset)
  schedule = method.schedule(
    schedules.multistep(
      config.learning_rate, config.milestones, epochs=config.epochs, epoch_steps=epoch_steps
    )
  )
  return Experiment(
    net=net,
    method=method,
    learner=learner,
    single=single,
    schedule=schedule,
    tx=method.optimizer(schedule, momentum=config.momentum, weight_decay=config.weight_decay),
    augment=views.make(config.views, dataset.mean, dataset.std),
    look=views.make((config.test_view,), dataset.mean, dataset.std),
    epoch_steps=epoch_steps,
    steps=epoch_steps * config.epochs,
  )


def assemble(config, task):
  """The method of a config with its wrappers around it."""
  method = call(METHODS, "method", dict(config.method), task)
  for options in config.wrappers:
    method = call(WRAPPERS, "wrapper", dict(options), method, task)
  return method


def teacher(asked, dataset):
  """(net, variables) of one reader of a finished run, as its best checkpoint has it.

  asked: "DIR", the best single network of the run in that folder, or "DIR:READER".
  ValueError, in one line, where there is none or where it learnt from other data.
  """
  folder, reader, result = finished(asked)
  config = ml_collections.ConfigDict(result["config"])
  there = {name: result["config"]["data"].get(name) for name in data_signature(dataset)}
  if different := logbook.differing(there, data_signature(dataset)):
    raise ValueError(
      f"the teacher in {folder} was trained on other data ({'; '.join(different)}); "
      "choose one that was trained on these"
    )
  net = models.build(config.network, dataset.classes)
  # It is only read: what taught it, and for how long an epoch was, no longer matters.
  task = Context(net, dataset.classes, 1, config.epochs, teacher=(net, None))
  networks = assemble(config, task).networks(best_learner(folder))
  if reader not in networks:
    raise ValueError(
      f"the teacher in {folder} has no single network {reader!r}; it has {', '.join(networks)}"
    )
  images = jnp.zeros((2, *dataset.image_shape))
  try:
    jax.eval_shape(lambda: run(net, networks[reader], images))
  except Exception as error:  # whatever a network may raise
    raise ValueError(
      f"the teacher in {folder} no longer fits its network {config.network!r}: "
      f"{str(error).splitlines()[0]}"
    ) from error
  return net, networks[reader]


def call(table, kind, options, *arguments):
  """Calls the builder that `options["name"]` names with the other options."""
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
  return table[name](*arguments, **options)


def described(config):
  students = config.method.get("students", 1)
  return config.method.name + (f" with {students} students" if students > 1 else "")


def check_shapes(network, method, dataset):
  """Runs init and the readers on shapes alone: (learner, names of the single readers).

  A stranger's network fails here, in one line, and not in the middle of a compilation.
  """
  shape = (2, *dataset.image_shape)
  views = jax.ShapeDtypeStruct((method.views, *shape), jnp.float32)
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  try:
    learner = jax.eval_shape(method.init, jax.random.key(0), views)
    single = jax.eval_shape(method.predict, learner, image)
    more = jax.eval_shape(method.ensembles, learner, image)
  except Exception as error:  # whatever a network may raise
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(f"network {network!r} fails on images {list(shape)}: {reason}") from error
  for name, logits in (single | more).items():
    if logits.shape != (2, dataset.classes):
      raise ValueError(
        f"network {network!r} gives {name} {list(logits.shape)} for images {list(shape)}; "
        f"logits [2, {dataset.classes}] are needed"
      )
  return learner, tuple(single)
