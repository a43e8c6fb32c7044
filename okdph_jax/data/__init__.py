"""Data sets in canonical order, and batches that are functions of (seed, step)."""

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
  "training",
]


def training(images, labels, *, seed, batch_size, views=1, mesh=None):
  """`batch(step) -> Batch` of a training set in memory or, where it is too large, streamed.

  In memory a Batch has images [B, H, W, C]; streamed, [V, B, S, S, C], one crop per view.
  """
  if isinstance(images, stream.Pictures):
    return stream.stream(images, seed=seed, batch_size=batch_size, views=views, mesh=mesh)
  return on_device(images, labels, seed=seed, batch_size=batch_size, mesh=mesh)


def padded(images, labels, batch_size, *, mesh=None):
  """Every image once, for evaluation: (Batch, mask bool [B]), one shape; see `batches.padded`."""
  if isinstance(images, stream.Pictures):
    return stream.padded_stream(images, batch_size, mesh=mesh)
  return batches.padded(images, labels, batch_size, mesh=mesh)
