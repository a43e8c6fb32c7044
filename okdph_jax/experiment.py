"""What a config means: checked, and built, before anything is compiled."""

import difflib
import importlib.metadata
import inspect
import os
import platform
import re
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tabulate import tabulate

from okdph_jax import data, host, logbook, models, schedules, views
from okdph_jax.checkpoint import best_learner
from okdph_jax.methods import METHODS, WRAPPERS
from okdph_jax.methods.protocol import Method, Task
from okdph_jax.nouns import Learner
from okdph_jax.students import run

FIELDS = {  # the config's options and their types
  "seed": int,
  "epochs": int,
  "batch_size": int,
  "network": str,
  "views": tuple,
  "test_view": str,
  "eval_every_epochs": int,
  "data": ml_collections.ConfigDict,
  "method": ml_collections.ConfigDict,
  "wrappers": tuple,
  "teacher": str,
  "generations": int,
  "learning_rate": float,
  "momentum": float,
  "weight_decay": float,
  "milestones": tuple,
  "devices": int | None,
  "snapshots": int,
  "checkpoint_every_minutes": float,
}

LEAST = {
  "epochs": 1,
  "batch_size": 1,
  "eval_every_epochs": 1,
  "generations": 1,
  "snapshots": 0,
  "weight_decay": 0,
}


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


def check(config):
  """A ValueError, in one line, for a config that says too much, too little or nonsense."""
  unknown(config, FIELDS, "config")
  for name, kind in FIELDS.items():
    typed(f"config.{name}", config.get(name), kind)
  for wrapper in config.wrappers:
    if not isinstance(wrapper, (dict, ml_collections.ConfigDict)):
      raise ValueError(
        f"config.wrappers has {wrapper!r}; each is a dict, written without dict(...): "
        "\"({'name':'swa'},)\""
      )
  for name, least in LEAST.items():
    if not config[name] >= least:
      raise ValueError(f"config.{name} is {config[name]}; it must be at least {least}")
  if not config.learning_rate > 0:
    raise ValueError(f"config.learning_rate is {config.learning_rate}; it must be positive")
  if not 0 <= config.momentum < 1:
    raise ValueError(f"config.momentum is {config.momentum}; it lies in [0, 1)")
  name = config.method.get("name")
  if name != "kd" and (config.teacher or config.generations > 1):
    raise ValueError(
      f"{name} has no teacher of another run; take the method kd, or leave "
      "config.teacher empty and config.generations at 1"
    )


def unknown(given, known, where):
  """Refuses names in `given` that are not `known`."""
  for name in sorted(set(given) - set(known)):
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{where} has no option {name!r}{hint} (there are {', '.join(known)})")


def typed(name, value, kind):
  """Refuses a value of another type; a whole number is a float too, True is no number."""
  if isinstance(value, bool) and kind is not bool or not isinstance(value, kind):
    if not (kind is float and type(value) is int):
      wanted = getattr(kind, "__name__", str(kind))
      raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; it must be {wanted}")


def build(config, dataset):
  """The experiment of a checked config; ValueError, in one line, where it cannot be."""
  epoch_steps = data.epoch_steps(len(dataset.train_labels), config.batch_size)
  net = models.build(config.network, dataset.classes)
  taught_by = teacher(config.teacher, dataset) if config.teacher else None
  method = assemble(config, Task(net, dataset.classes, epoch_steps, config.epochs, taught_by))
  if len(config.views) != method.views:
    raise ValueError(
      f"{described(config)} looks at {method.views} view{'s' * (method.views != 1)} "
      f"(one for each network it runs); config.views has {len(config.views)}: "
      + ", ".join(map(repr, config.views))
    )
  learner, single = rehearse(config.network, method, dataset)
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
  there = {name: result["config"]["data"].get(name) for name in measured(dataset)}
  if different := logbook.differing(there, measured(dataset)):
    raise ValueError(
      f"the teacher in {folder} was trained on other data ({'; '.join(different)}); "
      "choose one that was trained on these"
    )
  net = models.build(config.network, dataset.classes)
  # It is only read: what taught it, and for how long an epoch was, no longer matters.
  task = Task(net, dataset.classes, 1, config.epochs, teacher=(net, None))
  networks = assemble(config, task).networks(best_learner(folder))
  if reader not in networks:
    raise ValueError(
      f"the teacher in {folder} has no single network {reader!r}; it has {', '.join(networks)}"
    )
  images = jnp.zeros((2, *dataset.train_images.shape[1:]))
  try:
    jax.eval_shape(lambda: run(net, networks[reader], images))
  except Exception as error:  # whatever a network may raise
    raise ValueError(
      f"the teacher in {folder} no longer fits its network {config.network!r}: "
      f"{str(error).splitlines()[0]}"
    ) from error
  return net, networks[reader]


def finished(asked):
  """(folder, reader, result) of the run that "DIR" or "DIR:READER" names."""
  folder, reader = re.fullmatch(r"(.+?)(?::(\w+))?", asked).groups()
  if not os.path.isdir(folder):
    raise ValueError(f"config.teacher={asked}: there is no folder {folder}")
  result = logbook.read_result(folder)
  if result is None:
    raise ValueError(
      f"config.teacher={asked}: no run in {folder} is finished, it has no result.json; "
      "finish it, or name another --workdir"
    )
  return folder, reader or result["best_single"]["reader"], result


def call(table, kind, options, *arguments):
  """Calls the builder that `options["name"]` names with the other options."""
  name = options.pop("name", None)
  if name not in table:
    raise ValueError(f"unknown {kind} {name!r}; there are {', '.join(table) or 'none'}")
  parameters = inspect.signature(table[name]).parameters.values()
  known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  unknown(options, known, f"{kind} {name}")
  for option, value in options.items():
    default, stated = known[option].default, known[option].annotation
    if default is not None:
      wanted = type(default) if stated is inspect.Parameter.empty else stated
      typed(f"{kind} {name}'s {option}", value, wanted)
  return table[name](*arguments, **options)


def described(config):
  students = config.method.get("students", 1)
  return config.method.name + (f" with {students} students" if students > 1 else "")


def rehearse(network, method, dataset):
  """Runs init and the readers on shapes alone: (learner, names of the single readers).

  A stranger's network fails here, in one line, and not in the middle of a compilation.
  """
  shape = (2, *dataset.train_images.shape[1:])
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


def resolve(config, dataset, workdir):
  """The config as plain data, with what was measured: what config.json keeps."""
  resolved = config.to_dict()
  resolved["data"] |= measured(dataset)
  if config.teacher:  # so that a run and its teacher can be moved together
    resolved["teacher"] = os.path.relpath(config.teacher, workdir)
  return resolved


def measured(dataset):
  """What a network has to know of its data."""
  return {
    "classes": dataset.classes,
    "image": dataset.train_images.shape[1:],
    "normalisation": {"mean": dataset.mean, "std": dataset.std},
  }


def environment():
  """What the bits of a run depend on besides its config."""
  names = ("okdph_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  return {
    "versions": {name: importlib.metadata.version(name) for name in names},
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "cores": host.cores(),
  }


def parameters(experiment, dataset):
  """How many numbers descent moves, and how many the one network has that is deployed."""
  leaves = jax.tree.leaves(experiment.learner.params)
  trained = sum(int(np.prod(leaf.shape)) for leaf in leaves)
  return trained, models.parameters(experiment.net, dataset.train_images.shape[1:])


def summary(config, dataset, experiment):
  """What a run says before it starts: machine, data, method, network."""
  here = environment()
  versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
  image_shape = dataset.train_images.shape[1:]
  trained, deployed = parameters(experiment, dataset)
  about = getattr(experiment.net, "about", type(experiment.net).__name__)
  rows = [
    ("software", versions),
    ("devices", f"{here['devices']} x {here['device']}, {here['cores']} cores"),
    ("data", dataset.summary),
    ("views", " / ".join(config.views)),
    ("network", f"{config.network}: {about}"),
    ("method", described(config)),
    ("wrappers", ", ".join(options["name"] for options in config.wrappers) or "none"),
    ("parameters", f"{trained:,} trained, {deployed:,} deployed (one network)"),
    ("steps", f"{config.epochs} epochs of {experiment.epoch_steps}: {experiment.steps:,}"),
  ]
  if config.teacher:
    folder, reader, result = finished(config.teacher)
    rows.insert(5, ("teacher", f"{reader} of the {result['network']} in {folder}"))
  return tabulate(rows, tablefmt="plain") + "\n" + parameter_table(experiment.net, image_shape)


def parameter_table(net, image_shape):
  """One network's parameters by part."""
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(
    lambda key: net.lazy_init({"params": key, "dropout": key}, image, False), jax.random.key(0)
  )
  sizes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
    part = "/".join(key.key for key in path[:2])
    tensors, total = sizes.get(part, (0, 0))
    sizes[part] = tensors + 1, total + int(np.prod(leaf.shape))
  rows = [(part, tensors, f"{total:,}") for part, (tensors, total) in sizes.items()]
  headers = ("part of one network", "tensors", "parameters")
  return tabulate(rows, headers, tablefmt="simple", colalign=("left", "right", "right"))


def writable(workdir):
  """Makes the folder; ValueError, in one line, where nothing can be written there."""
  try:
    os.makedirs(workdir, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise ValueError(
      f"cannot write to --workdir={workdir}: {error.strerror}; choose another folder"
    ) from error
