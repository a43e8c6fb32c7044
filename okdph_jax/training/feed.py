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
from okdph_jax.data.batches import sharding
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
  config: ConfigDict, dataset: Dataset, augment: Augment, views: int, mesh: Mesh
) -> Feed:
  """The `Feed` of a run, with batches on the devices of `mesh`.

  With `config.views_on="host"` the image of a batch is its views, float32 [V, B, H, W, C]. A
  thread computes them on JAX's CPU backend, `AHEAD` steps in advance; they are equal to those
  that the step would compute from the same (seed, step).
  """
  options: Any = dict(batch_size=config.batch_size, views=views)
  shapes = dataset.train.shapes(**options, mesh=mesh)

  @functools.cache  # copies the dataset to the devices when it is first needed
  def batches(mesh):
    return dataset.train.batches(**options, seed=config.seed, mesh=mesh)

  if config.views_on == "device":
    return Feed(batches(mesh), batches(mesh), shapes, augment)
  cpu = _cpu()
  with jax.default_device(cpu.devices.flat[0]):
    key = jax.random.key(config.seed)
  look = jax.jit(
    lambda key, step, image: augment(keys_of(key, step)[0], image),
    compiler_options=host.compiler_options("cpu"),
  )

  def prepare(step):
    batch = batches(cpu)(step)
    views, label = jax.device_get((look(key, np.int32(step), batch.image), batch.label))
    return Batch(
      host.place(views, sharding(mesh, len(label), axis=1)),
      host.place(label, sharding(mesh, len(label))),
    )

  def viewed(batch):
    views, size = jax.eval_shape(look, key, np.int32(0), batch.image), len(batch.label)
    image: Any = jax.ShapeDtypeStruct(
      views.shape, views.dtype, sharding=sharding(mesh, size, axis=1)
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
  if jax.process_count() > 1:
    raise ValueError(
      "config.views_on='host' does not work in a pod of several processes; use 'device'"
    )
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    raise ValueError(
      "config.views_on='host' needs JAX's CPU backend, which JAX_PLATFORMS excludes"
    ) from None
  return Mesh([device], ("data",), axis_types=(AxisType.Auto,))
