"""The training batches of a run, whose views may be computed by the host in advance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from okdph_jax.core import Batch
from okdph_jax.data import Dataset
from okdph_jax.data.batches import everything, local, sharding, size_at
from okdph_jax.runtime import host
from okdph_jax.training.step import Augment, keys_of

if TYPE_CHECKING:  # plain training needs no ml_collections
  from ml_collections import ConfigDict

AHEAD = 2  # steps whose views are computed while a step runs


class Feed(NamedTuple):
  """The batches of a run."""

  batch: Callable[[int], Batch]  # (step) -> the input of the training step
  images: Callable[[int], Batch]  # (step) -> the same images, without views
  shapes: dict[int, Batch]  # {size: shapes and shardings of a batch}, the full batch first
  augment: Augment  # for the training step; the identity if the host computes the views


def feed(
  config: ConfigDict,
  dataset: Dataset,
  augment: Callable[..., Any],
  views: int,
  mesh: Mesh,
) -> Feed:
  """The `Feed` of a run, with batches on the devices of `mesh`.

  augment: as `okdph_jax.views.make` returns it.

  With `config.views_on="host"` the image of a batch is its views, float32 [V, B, H, W, C]. A
  thread computes them on JAX's CPU backend, `AHEAD` steps in advance; they are equal to those
  that the step would compute from the same (seed, step). In a pod every process computes those
  of the images on its own devices.
  """
  options: Any = dict(batch_size=config.batch_size, views=views)
  shapes = dataset.train.shapes(**options, mesh=mesh)

  @functools.cache  # copies the dataset to the devices when it is first needed
  def batches(mesh, part=everything):
    return dataset.train.batches(**options, seed=config.seed, mesh=mesh, part=part)

  if config.views_on == "device":
    return Feed(batches(mesh), batches(mesh), shapes, augment)
  cpu = _cpu()
  with jax.default_device(cpu.devices.flat[0]):
    key = jax.random.key(config.seed)
  look = jax.jit(
    lambda key, step, image, position: augment(keys_of(key, step)[0], image, position),
    compiler_options=host.compiler_options("cpu"),
  )

  @functools.cache  # of the full batch and of the short one
  def part(size):
    return local(sharding(mesh, size), size)

  def prepare(step):
    size = size_at(step, len(dataset.train), config.batch_size)
    image, label = batches(cpu, part)(step)
    views, label = jax.device_get((look(key, np.int32(step), image, part(size)), label))
    whole = jax.make_array_from_process_local_data
    return Batch(
      whole(sharding(mesh, size, axis=1), views, (len(views), size, *views.shape[2:])),
      whole(sharding(mesh, size), label, (size,)),
    )

  def viewed(batch):
    size = len(batch.label)
    seen = jax.eval_shape(augment, key, batch.image)
    image: Any = jax.ShapeDtypeStruct(
      seen.shape, seen.dtype, sharding=sharding(mesh, size, axis=1)
    )
    return batch._replace(image=image)

  seen = {size: viewed(batch) for size, batch in shapes.items()}
  return Feed(ahead(prepare), lambda step: batches(mesh)(step), seen, as_they_are)


def as_they_are(key: Any, image: Any) -> Any:
  """The `Augment` for images that are already views."""
  del key
  return image


def ahead(prepare: Callable[[int], Any]) -> Callable[[int], Any]:
  """`prepare(step)`, computed by a thread up to `AHEAD` steps in advance."""
  thread = futures.ThreadPoolExecutor(1, "views")
  pending: dict[int, futures.Future[Any]] = {}

  def result(step):
    wanted = range(step, step + AHEAD + 1)
    for other in [other for other in pending if other not in wanted]:
      pending.pop(other).cancel()
    for other in wanted:
      if other not in pending:
        pending[other] = thread.submit(prepare, other)
    return pending.pop(step).result()

  return result


def _cpu():
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    raise ValueError(
      "config.views_on='host' needs JAX's CPU backend, which JAX_PLATFORMS excludes"
    ) from None
  return Mesh([device], ("data",), axis_types=(AxisType.Auto,))
