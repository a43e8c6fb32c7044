"""What a run prints and records before it starts: its config, environment, and parameters."""

import importlib.metadata
import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict
from tabulate import tabulate

from okdph_jax import models
from okdph_jax.data import Dataset
from okdph_jax.experiment.build import Experiment, described
from okdph_jax.experiment.teacher import data_signature
from okdph_jax.nn import onednn
from okdph_jax.runtime import host
from okdph_jax.saved_config import SOURCES


def resolve(
  config: ConfigDict, workdir: str | os.PathLike[str], dataset: Dataset | None = None
) -> dict[str, Any]:
  """The config as plain data, with the measured properties of the data, as in config.json."""
  resolved = config.to_dict()
  if dataset:
    resolved["data"] |= data_signature(dataset)
  for name in SOURCES:  # relative, so that both folders can be moved together
    if config[name]:
      resolved[name] = os.path.relpath(config[name], workdir)
  return resolved


def environment(runs_together: int = 1) -> dict[str, Any]:
  """Versions and devices, on which the last bits of a run may depend.

  runs_together: how many runs are trained in one program.
  """
  names = ("okdph_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  return {
    "versions": {name: importlib.metadata.version(name) for name in names},
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "cores": host.cores(),
    "convolutions": onednn.choice().name,
    "runs_together": runs_together,
  }


def parameters(experiment: Experiment, dataset: Dataset) -> tuple[int, int]:
  """(number of trained parameters, number of parameters of one network)."""
  leaves = jax.tree.leaves(experiment.learner.params)
  trained = sum(int(np.prod(leaf.shape)) for leaf in leaves)
  return trained, models.parameters(experiment.net, dataset.image_shape)


def summary(config: ConfigDict, dataset: Dataset, experiment: Experiment) -> str:
  """What a run prints before it starts: software, devices, data, method, network."""
  here = environment()
  versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
  image_shape = dataset.image_shape
  trained, deployed = parameters(experiment, dataset)
  about = getattr(experiment.net, "about", type(experiment.net).__name__)
  rows = [
    ("software", versions),
    ("devices", f"{here['devices']} x {here['device']}, {here['cores']} cores"),
    ("convolutions", onednn.choice()),
    ("data", dataset.summary),
    ("views", " / ".join(config.views)),
    ("network", f"{config.network}: {about}"),
    ("method", described(config)),
    ("wrappers", ", ".join(options["name"] for options in config.wrappers) or "none"),
    ("parameters", f"{trained:,} trained, {deployed:,} deployed (one network)"),
    ("steps", f"{config.epochs} epochs of {experiment.epoch_steps}: {experiment.steps:,}"),
  ]
  options = ", ".join(f"{name}={value}" for name, value in config.network_options.items())
  for name, value in (
    ("network options", options),
    ("starts from", experiment.start),
    ("teacher", experiment.teacher),
  ):
    if value:
      rows.append((name, value))
  return tabulate(rows, tablefmt="plain") + "\n" + parameter_table(experiment.net, image_shape)


def parameter_table(net: nn.Module, image_shape: tuple[int, ...]) -> str:
  """A table of the parameters of each part of one network."""
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(
    lambda key: net.lazy_init({"params": key, "dropout": key}, image, False), jax.random.key(0)
  )
  sizes = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
    part = "/".join(str(key.key) for key in path[:2])
    tensors, total = sizes.get(part, (0, 0))
    sizes[part] = tensors + 1, total + int(np.prod(leaf.shape))
  rows = [(part, tensors, f"{total:,}") for part, (tensors, total) in sizes.items()]
  headers = ("part of one network", "tensors", "parameters")
  return tabulate(rows, headers, tablefmt="simple", colalign=("left", "right", "right"))
