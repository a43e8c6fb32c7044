"""Batches: the batch of step s is a pure function of (seed, s).

Resuming therefore needs no bookkeeping: ask for the batch of the step. Every epoch is a
permutation of the examples in canonical order, so that each image comes once per epoch. The
last, short batch is kept (391 steps for 50,000 images in batches of 128).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from okdph_jax.core import Batch
from okdph_jax.runtime import host


def epoch_steps(size, batch_size):
  """Steps in an epoch over `size` images; the last batch may be short."""
  return -(-size // batch_size)


@functools.lru_cache(maxsize=4)
def permutation(seed, epoch, size):
  """The order of one epoch: int32 [size]. seed: from 0 to 2**32 - 1."""
  return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def indices(seed, step, size, batch_size):
  """Which images make up the batch of `step`: int32 [b], b <= batch_size."""
  epoch, position = divmod(int(step), epoch_steps(size, batch_size))
  return permutation(seed, epoch, size)[position * batch_size : (position + 1) * batch_size]


def sharding(mesh, batch_size, *, axis=0):
  """The sharding of a batch: split along `axis` if the mesh's "data" divides it, else whole."""
  split = batch_size % mesh.shape["data"] == 0
  return NamedSharding(
    mesh, PartitionSpec(*[None] * axis, "data") if split else PartitionSpec()
  )


def local(sharding, batch_size):
  """The positions of a batch that this process's devices hold: int [b]; all, but in a pod."""
  mine = np.zeros(batch_size, bool)
  for (part,) in sharding.addressable_devices_indices_map((batch_size,)).values():
    mine[part] = True
  return np.flatnonzero(mine)


def on_device(images, labels, *, seed, batch_size, mesh=None):
  """Puts a training set on the devices, once, and returns `batch(step) -> Batch`.

  images: uint8 [N, H, W, C]. labels: int32 [N]. mesh: devices along "data", each of which
  holds the whole set; by default the first. Batches are gathered there, so that only their
  indices cross from the host.
  """
  size, mesh = len(labels), mesh or host.mesh(1)
  whole = Batch(np.asarray(images), np.asarray(labels, np.int32))
  whole = host.place(whole, NamedSharding(mesh, PartitionSpec()))

  @functools.cache  # one per shape: the full batch and the short one
  def gather(count):
    return jax.jit(
      lambda whole, chosen: jax.tree.map(lambda x: jnp.take(x, chosen, axis=0), whole),
      out_shardings=sharding(mesh, count),
    )

  def batch(step):
    chosen = indices(seed, step, size, batch_size)
    return gather(len(chosen))(whole, chosen)

  return batch


def padded(images, labels, batch_size, *, mesh=None):
  """Every image once, in order, in batches of one shape: yields (Batch, mask bool [B]).

  The last batch is filled up with zeros, and the mask is false there, so that one
  compilation serves an evaluation.
  """
  placed = sharding(mesh or host.mesh(1), batch_size)
  for start in range(0, len(labels), batch_size):
    part = Batch(images[start : start + batch_size], labels[start : start + batch_size])
    count = len(part.label)
    part = jax.tree.map(lambda x: _fill(x, batch_size), part)
    yield host.place((part, np.arange(batch_size) < count), placed)


def _fill(array, count):
  missing = [(0, count - len(array))] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, missing)
