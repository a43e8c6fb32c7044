"""Networks of finished runs as teachers, and as initial variables."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from okdph_jax.data import Dataset
from okdph_jax.models import torchvision
from okdph_jax.models.pretrained import Pretrained
from okdph_jax.run import parse_reference
from okdph_jax.saved_config import differing
from okdph_jax.trained_network import TrainedNetwork


def data_signature(dataset: Dataset) -> dict[str, Any]:
  """The properties of the data that a network depends on."""
  return {
    "classes": dataset.classes,
    "image": dataset.image_shape,
    "normalisation": {"mean": dataset.mean, "std": dataset.std},
  }


def teacher(config: ConfigDict, dataset: Dataset) -> TrainedNetwork | None:
  """The network that `config.teacher` names, or None if it is empty.

  It is "DIR[:READER][@WHICH]" of a finished run, see `Run.network`, or a file with weights of
  the ResNet `config.teacher_network`, see `models.torchvision`.

  Raises:
    ValueError: in one line, if there is no such network, or if it was trained on other data.
  """
  if not config.teacher:
    return None
  if config.teacher.endswith(torchvision.FILES):
    return from_file(config, dataset)
  run, reader, which = parse_reference(config.teacher, "config.teacher")
  data = run.require_config()["data"]
  there = {name: data.get(name) for name in data_signature(dataset)}
  if different := differing(there, data_signature(dataset)):
    raise ValueError(
      f"the teacher in {run.path} was trained on other data ({'; '.join(different)}); choose a "
      "teacher that was trained on this run's data"
    )
  theirs = (run.record or {}).get("fingerprint", {}).get("train")
  if theirs and theirs != dataset.train.fingerprint():
    print(f"the teacher in {run.path} was trained on other images or labels than this run")
  return run.network(reader, which, config.teacher_network or config.network)


def from_file(config: ConfigDict, dataset: Dataset) -> TrainedNetwork:
  """The ResNet with the weights in the file `config.teacher`."""
  try:
    module, variables = torchvision.load(
      config.teacher, config.teacher_network, dataset.mean, dataset.std
    )
  except ValueError as error:
    raise ValueError(f"config.teacher, config.teacher_network: {error}") from error
  classes = len(variables["params"]["net"]["branch"]["Dense_0"]["bias"])
  return TrainedNetwork(
    module=module,
    variables=variables,
    class_names=tuple(map(str, range(classes))),
    image_shape=dataset.image_shape,
    mean=dataset.mean,
    std=dataset.std,
    test_view="plain",
    origin=f"the {config.teacher_network} in {config.teacher}, {classes} classes",
  )


def pretrained(config: ConfigDict, net: nn.Module, dataset: Dataset) -> tuple[Any, str | None]:
  """(`net`, initialised from `config.init_from`; a description of that in one line)."""
  if not config.init_from:
    return net, None
  run, reader, which = parse_reference(config.init_from, "config.init_from")
  source = run.network(reader, which, config.network)
  started = Pretrained(net, source.variables)
  image = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
  own = started.own_start(image)
  total = len(jax.tree.leaves(source.variables["params"]))
  if len(own) >= total:
    raise ValueError(
      f"config.init_from={config.init_from}: no parameter of {source.origin} has the name and "
      f"shape of a parameter of {config.network}; choose a run of the same network"
    )
  return started, f"{source.origin}; new: {', '.join(own) or 'nothing'}"
