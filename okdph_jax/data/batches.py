"""Batches of datasets in memory: the batch of step s is a pure function of (seed, s).

So resuming needs no bookkeeping. Every epoch is a permutation of the examples in canonical
order. The last batch of an epoch may be short (391 steps for 50,000 images in batches of 128).
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Bool, Int, Int32, UInt8

from okdph_jax.core import Batch
from okdph_jax.runtime import host


def epoch_steps(size: int, batch_size: int) -> int:
  """Steps in an epoch over `size` images; the last batch may be short."""
  return -(-size // batch_size)


def size_at(step: int, size: int, batch_size: int) -> int:
  """The number of images in the batch of `step`."""
  return min(batch_size, size - step % epoch_steps(size, batch_size) * batch_size)


@functools.lru_cache(maxsize=32)  # seeds that train together take turns
def permutation(seed: int, epoch: int, size: int) -> Int32[np.ndarray, " size"]:
  """The order of one epoch. seed: from 0 to 2**32 - 1."""
  return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def indices(seed: int, step: int, size: int, batch_size: int) -> Int32[np.ndarray, " B"]:
  """The indices of the images in the batch of `step`; an epoch's last batch may be short."""
  epoch, position = divmod(int(step), epoch_steps(size, batch_size))
  return permutation(seed, epoch, size)[position * batch_size : (position + 1) * batch_size]


def sharding(mesh: Mesh, batch_size: int, *, axis: int = 0) -> NamedSharding:
  """A batch's sharding: along `axis` over the mesh's "data" if that divides it, else none."""
  split = batch_size % mesh.shape["data"] == 0
  return NamedSharding(
    mesh, PartitionSpec(*[None] * axis, "data") if split else PartitionSpec()
  )


def local(sharding: Sharding, batch_size: int) -> Int[np.ndarray, " b"]:
  """The positions of a batch that this process's devices hold: all of them, except in a pod."""
  mine = np.zeros(batch_size, bool)
  for part in sharding.addressable_devices_indices_map((batch_size,)).values():
    mine[part] = True
  return np.flatnonzero(mine)


def placed(
  images: UInt8[np.ndarray, "N H W C"], labels: Int[np.ndarray, " N"], mesh: Mesh
) -> Batch:
  """A whole training set as one batch, copied to every device of `mesh`."""
  whole = np.asarray(images), np.asarray(labels, np.int32)
  return Batch(*host.place(whole, NamedSharding(mesh, PartitionSpec())))


Part = Callable[[int], Int[np.ndarray, " b"]]  # (size of a batch) -> positions in it


def everything(size: int) -> Int[np.ndarray, " B"]:
  """The `Part` of a batch that is all of it."""
  return np.arange(size)


def gathered(
  whole: Batch, *, seed: int, batch_size: int, mesh: Mesh, part: Part = everything
) -> Callable[[int], Batch]:
  """Returns `batch(step) -> Batch`, gathered on the devices: the host sends only indices.

  whole: the training set, `placed` on `mesh`. part: which images of each batch.
  """

  @functools.cache  # one per shape: the full batch and the short one
  def gather(count):
    return jax.jit(
      lambda whole, chosen: jax.tree.map(lambda x: jnp.take(x, chosen, axis=0), whole),
      out_shardings=sharding(mesh, count),
    )

  def batch(step):
    chosen = indices(seed, step, len(whole.label), batch_size)
    chosen = chosen[part(len(chosen))]
    return gather(len(chosen))(whole, chosen)

  return batch


def padded(
  images: UInt8[np.ndarray, "N H W C"],
  labels: Int[np.ndarray, " N"],
  batch_size: int,
  *,
  mesh: Mesh | None = None,
) -> Iterator[tuple[Batch, Bool[Array, " B"]]]:
  """Yields (Batch, mask) with every image once, in order.

  The last batch is padded with zeros, where the mask is False, so that all have one shape.
  """
  placed = sharding(mesh or host.mesh(1), batch_size)
  for start in range(0, len(labels), batch_size):
    part = slice(start, start + batch_size)
    mask = np.arange(batch_size) < len(labels[part])
    arrays = _fill(images[part], batch_size), _fill(labels[part], batch_size), mask
    image, label, mask = host.place(arrays, placed)
    yield Batch(image, label), mask


def _fill(array: np.ndarray, count: int) -> np.ndarray:
  missing = [(0, count - len(array))] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, missing)
