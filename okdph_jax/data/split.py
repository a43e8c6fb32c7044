"""Images and labels of a split, in memory or streamed."""

import dataclasses
import functools
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Int32, UInt8

from okdph_jax.core import Batch
from okdph_jax.data import batches, stream
from okdph_jax.runtime import host

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel

SEED = 42  # of drawn test sets and of samples; the default of `config.data.seed`
POOL = 16  # `examples` chooses from this many times as many streamed images


class Examples(NamedTuple):
  """A few images, to be shown."""

  original: UInt8[np.ndarray, "B H W C"]  # as in evaluation
  training: UInt8[np.ndarray, "*V B H W C"]  # as in batches: if streamed, a crop for each view
  labels: Int[np.ndarray, " B"]


def several(labels: Sequence[int] | np.ndarray, count: int) -> list[int]:
  """Indices of `count` images of as many classes as possible, sorted by class."""
  places = defaultdict(list)
  for place, label in enumerate(labels):
    places[int(label)].append(place)
  classes = sorted(places)
  if len(classes) > count:
    spaced = np.linspace(0, len(classes) - 1, count).round().astype(int)
    classes = [classes[i] for i in spaced]
  turns = itertools.zip_longest(*(places[label] for label in classes))  # one of each, and again
  chosen = [place for turn in turns for place in turn if place is not None][:count]
  return sorted(chosen, key=lambda place: (labels[place], place))


@dataclasses.dataclass(frozen=True)
class Split:
  """Images and their labels in canonical order, in memory."""

  images: UInt8[np.ndarray, "N H W C"]
  labels: Int32[np.ndarray, " N"]

  streamed = False

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, chosen: slice | np.ndarray) -> Self:
    """The split of the chosen images: a slice, indices or a mask."""
    return type(self)(self.images[chosen], self.labels[chosen])

  @property
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C)."""
    return self.images.shape[1:]

  def check_readable(self) -> None:
    """Raises ValueError, in one line, if no image can be decoded."""

  def first(self, count: int) -> UInt8[np.ndarray, "N H W C"]:
    """The first `count` images, as in evaluation."""
    return self.images[:count]

  def examples(self, count: int, views: int) -> Examples:
    """`count` images of as many classes as possible."""
    chosen = several(self.labels, count)
    images = self.images[chosen]
    return Examples(images, images, self.labels[chosen])

  def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """(mean, std, what they were measured on); mean and std per channel of x / 255."""
    return *moments(self.images), "the training split"

  def fingerprint(self) -> dict[str, Any]:
    """{"images": count, "digest": hexadecimal} of the images and labels in order."""
    digest = hashlib.sha256()
    for part in (*self._identity(), np.asarray(self.labels, "<i4")):
      digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return {"images": len(self), "digest": digest.hexdigest()[:16]}

  def _identity(self) -> tuple[np.ndarray, ...]:
    """Arrays that identify the images."""
    return np.asarray(self.image_shape, "<i4"), self.images

  def batches(
    self,
    *,
    seed: int,
    batch_size: int,
    views: int = 1,
    mesh: Mesh | None = None,
    part: batches.Part = batches.everything,
  ) -> Callable[[int], Batch]:
    """`batch(step) -> Batch` for training, a function of (seed, step).

    The image is uint8 [B, H, W, C], for all views. mesh: its devices each hold the whole split,
    one copy for all seeds; by default only the first device. part: which images of each batch.
    """
    del views
    mesh = mesh or host.mesh(1)
    if mesh not in self._placed:
      self._placed[mesh] = batches.placed(self.images, self.labels, mesh)
    return batches.gathered(
      self._placed[mesh], seed=seed, batch_size=batch_size, mesh=mesh, part=part
    )

  @functools.cached_property
  def _placed(self) -> dict[Mesh, Batch]:
    """The whole split on the devices of each mesh that has asked for batches."""
    return {}

  def padded(
    self, batch_size: int, *, mesh: Mesh | None = None
  ) -> Iterator[tuple[Batch, Bool[Array, " B"]]]:
    """Yields (Batch, mask) for evaluation: every image once, in batches of one shape."""
    return batches.padded(self.images, self.labels, batch_size, mesh=mesh)

  def shapes(self, *, batch_size: int, views: int = 1, mesh: Mesh) -> dict[int, Batch]:
    """{B: shapes of a training batch}: of the full batch, and then of a short last one."""
    full, crops = min(batch_size, len(self)), (views,) if self.streamed else ()
    sizes = full, len(self) % full or full
    return {size: self._batch_shapes(size, mesh, crops) for size in sizes}

  def padded_shapes(self, batch_size: int, *, mesh: Mesh) -> tuple[Batch, Any]:
    """The shapes of what `padded` yields."""
    place = batches.sharding(mesh, batch_size)
    mask = jax.ShapeDtypeStruct((batch_size,), bool, sharding=place)
    return self._batch_shapes(batch_size, mesh), mask

  def _batch_shapes(self, size: int, mesh: Mesh, crops: tuple[int, ...] = ()) -> Batch:
    place = batches.sharding(mesh, size, axis=len(crops))
    shape: Any = jax.ShapeDtypeStruct  # stands for an array
    return Batch(
      shape((*crops, size, *self.image_shape), np.uint8, sharding=place),
      shape((size,), np.int32, sharding=batches.sharding(mesh, size)),
    )


@dataclasses.dataclass(frozen=True)
class StreamedSplit(Split):
  """A split whose images are decoded on the host when they are needed.

  Training batches have images uint8 [V, B, S, S, C], a random crop for each view. Labels of
  TFDS datasets are `stream.UNKNOWN` here; the batches have them.
  """

  images: stream.Pictures

  streamed = True

  def check_readable(self):
    stream.first_readable(self.images)

  def first(self, count):
    return stream.sample(self.images, count)

  def examples(self, count, views):
    entries = stream.readable(self.images, stream.peek(self.images, POOL * count, (SEED, 0)))
    entries = [entries[i] for i in several([entry.label for entry in entries], count)]
    original, seen = stream.crops(self.images, entries, views, SEED)
    return Examples(original, seen, np.array([entry.label for entry in entries]))

  def normalisation(self):
    images = stream.sample(self.images, 1_000, order=(SEED, 0))
    return *moments(images), f"{len(images):,} training images"

  def batches(self, *, seed, batch_size, views=1, mesh=None, part=batches.everything):
    return stream.stream(
      self.images, seed=seed, batch_size=batch_size, views=views, mesh=mesh, part=part
    )

  def _identity(self):
    text = "\n".join(self.images.store.identity(self.images.chosen))
    return (np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8),)

  def padded(self, batch_size, *, mesh=None):
    return stream.padded_stream(self.images, batch_size, mesh=mesh)


def moments(images: UInt8[np.ndarray, "N H W C"]) -> Moments:
  """(mean, standard deviation) per channel of x / 255."""
  channels, count = images.shape[-1], images.size / images.shape[-1]
  total, square = np.zeros(channels), np.zeros(channels)
  for start in range(0, len(images), 1024):  # all at once would take 8 times the memory
    part = images[start : start + 1024].reshape(-1, channels) / 255
    total, square = total + part.sum(0), square + np.square(part).sum(0)
  mean = total / count
  std = np.sqrt(np.maximum(square / count - mean**2, 0))
  std = np.maximum(std, 1 / 255)  # for a constant channel
  return tuple(mean.tolist()), tuple(std.tolist())
