"""Data sets in canonical order, and batches that are functions of (seed, step)."""

import jax
import numpy as np

from okdph_jax.core import Batch
from okdph_jax.data import batches, stream
from okdph_jax.data.batches import epoch_steps, indices, on_device
from okdph_jax.data.sources import NORMALISATION, Dataset, load

__all__ = [
  "NORMALISATION",
  "Dataset",
  "epoch_steps",
  "indices",
  "load",
  "on_device",
  "padded",
  "shapes",
  "training",
]


def training(images, labels, *, seed, batch_size, views=1, mesh=None):
  """`batch(step) -> Batch` of a training set in memory or, where it is too large, streamed.

  In memory a Batch has images [B, H, W, C]; streamed, [V, B, S, S, C], one crop per view.
  """
  if isinstance(images, stream.Pictures):
    return stream.stream(images, seed=seed, batch_size=batch_size, views=views, mesh=mesh)
  return on_device(images, labels, seed=seed, batch_size=batch_size, mesh=mesh)


def shapes(images, *, batch_size, views=1, mesh):
  """What `training` gives, as shapes: {b: Batch} for the full batch and the short one."""
  full = min(batch_size, len(images))
  sizes = {full, len(images) % batch_size or full}
  crops = (views,) if isinstance(images, stream.Pictures) else ()

  def batch(size):
    place = batches.sharding(mesh, size, axis=len(crops))
    return Batch(
      jax.ShapeDtypeStruct((*crops, size, *images.shape[1:]), np.uint8, sharding=place),
      jax.ShapeDtypeStruct((size,), np.int32, sharding=batches.sharding(mesh, size)),
    )

  return {size: batch(size) for size in sorted(sizes, reverse=True)}


def padded(images, labels, batch_size, *, mesh=None):
  """Every image once, for evaluation, in batches of one shape: (Batch, mask bool [B])."""
  if isinstance(images, stream.Pictures):
    return stream.padded_stream(images, batch_size, mesh=mesh)
  return batches.padded(images, labels, batch_size, mesh=mesh)
