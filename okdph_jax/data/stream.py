"""Datasets that do not fit in memory: images are decoded on the host when they are needed.

They stay encoded, in files or TFDS records, until their batch is due. Each is decoded once and
cropped once per view; the other operations of the views run on the device. As in memory, the
batch of step s is a function of (seed, s): the order of an epoch depends on (seed, epoch), a
crop on (seed, step, position, view). A resumed run skips the records before its step without
decoding them.

One thread per core decodes, and at most `AHEAD` batches are prepared in advance; each is sent
to the device when it is complete.
"""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Int32, UInt8
from PIL.Image import Image

from okdph_jax.core import Batch
from okdph_jax.data.batches import (
  Part,
  epoch_steps,
  everything,
  local,
  permutation,
  sharding,
)
from okdph_jax.data.pictures import decode, evaluation_crop, pixels, random_resized_crop
from okdph_jax.errors import one_line
from okdph_jax.runtime import host

AHEAD = 2  # batches prepared besides the current one
SHUFFLED = 4096  # records in the shuffle buffer of a TFDS split: half a gigabyte of ImageNet
UNKNOWN = -1  # the label of a record that has not been read


class Entry(NamedTuple):
  """An encoded image and its label."""

  name: str
  label: int
  encoded: bytes | pathlib.Path


class Store(Protocol):
  """A store of encoded images: `Files` or `Shards`."""

  def identity(self, chosen: Int[np.ndarray, " N"]) -> Iterable[str]:
    """Lines that identify the chosen images, without decoding them."""
    ...

  def batches(
    self,
    chosen: Int[np.ndarray, " N"],
    batch_size: int,
    order: tuple[int, int] | None = None,
    start: int = 0,
  ) -> Iterator[list[Entry]]:
    """Yields lists of entries, from the position `start` on.

    order: (seed, epoch), which determine the shuffled order; None: canonical order.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Encoded images, used by `StreamedSplit` like an array [N, S, S, C]."""

  store: Store
  chosen: Int[np.ndarray, " N"]  # indices of images in the store, in canonical order
  size: int  # S
  channels: int  # C
  skip_corrupt: bool = False  # else a corrupt image stops the run
  skipped: list[str] = dataclasses.field(
    default_factory=list
  )  # error messages of corrupt images

  def __len__(self) -> int:
    return len(self.chosen)

  def __getitem__(self, indices: slice | np.ndarray) -> "Pictures":
    return dataclasses.replace(self, chosen=self.chosen[indices])

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return len(self), self.size, self.size, self.channels

  def read(self, entry: Entry) -> Image:
    """Decodes an entry."""
    return decode(entry.name, entry.encoded, self.channels)

  def evaluation(self, entry: Entry) -> UInt8[np.ndarray, "S S C"]:
    """Decodes an entry and crops it for evaluation."""
    return pixels(evaluation_crop(self.read(entry), self.size))

  def crop(self, image: Image, seed: tuple[int, ...]) -> UInt8[np.ndarray, "S S C"]:
    """A random crop, a function of the image and `seed`."""
    return pixels(random_resized_crop(np.random.default_rng(seed), image, self.size))


class Files(NamedTuple):
  """Images in files: an epoch is a permutation of all of them."""

  paths: tuple[pathlib.Path, ...]
  labels: Int32[np.ndarray, " N"]

  def identity(self, chosen):
    """The name and size of each file."""

    def line(i):
      path = self.paths[i]
      return f"{path.parent.name}/{path.name} {path.stat().st_size}"

    with futures.ThreadPoolExecutor(host.cores()) as pool:
      return list(pool.map(line, chosen))

  def batches(self, chosen, batch_size, order=None, start=0):
    if order is not None:
      chosen = chosen[permutation(*order, len(chosen))]
    for first in range(start, len(chosen), batch_size):
      due = chosen[first : first + batch_size]
      yield [Entry(str(self.paths[i]), int(self.labels[i]), self.paths[i]) for i in due]


class Shards(NamedTuple):
  """The records of a TFDS split, read by tf.data.

  An epoch shuffles the shards, interleaves 16 of them, and draws from a buffer of `SHUFFLED`
  records. The index of an image is its position in the unshuffled split.
  """

  builder: Any
  split: str
  image: str  # names of the features
  label: str

  def identity(self, chosen):
    """The names and sizes of the shards, and the positions of the records in them."""
    import tensorflow as tf

    for part in self.builder.info.splits[self.split].file_instructions:
      size = tf.io.gfile.stat(part.filename).length
      yield f"{pathlib.Path(part.filename).name} {size} {part.skip} {part.take}"
    yield ",".join(map(str, chosen))

  def batches(self, chosen, batch_size, order=None, start=0):
    """`chosen` must not contain an index twice."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    parts = self.builder.info.splits[self.split].file_instructions
    sizes = np.array([part.take for part in parts])
    first = np.cumsum(sizes) - sizes  # the index of each shard's first record
    generator = np.random.default_rng(order or 0)
    sequence = np.arange(len(parts)) if order is None else generator.permutation(len(parts))

    def records(file, skip, take, index):
      return tf.data.TFRecordDataset(file).skip(skip).take(take).enumerate(index)

    def parsed(index, record):
      decoders = {self.image: tfds.decode.SkipDecoding()}
      example = self.builder.info.features.deserialize_example(record, decoders=decoders)
      return index, example[self.label], example[self.image]

    columns = [part.filename for part in parts], [part.skip for part in parts], sizes, first
    due: Any = tf.data.Dataset.from_tensor_slices(tuple(np.array(c)[sequence] for c in columns))
    due = due.interleave(records, cycle_length=1 if order is None else 16, block_length=16)
    if len(chosen) < sizes.sum():
      wanted = tf.constant(np.isin(np.arange(sizes.sum()), chosen))
      due = due.filter(lambda index, record: wanted[index])
    if order is not None:
      due = due.shuffle(SHUFFLED, seed=int(generator.integers(2**62)))
    due = due.skip(start).map(parsed).batch(batch_size).prefetch(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 2  # enough to read; decoding is done here
    try:
      for batch in tfds.as_numpy(due.with_options(options)):
        yield [self._entry(parts, first, *item) for item in zip(*batch, strict=True)]
    except tf.errors.OpError as error:
      raise ValueError(
        f"{self.builder.data_path}: cannot read the records of {self.split!r} "
        f"({one_line(error)}); prepare the dataset again"
      ) from None

  def _entry(self, parts, first, index, label, encoded):
    part = np.searchsorted(first, index, side="right") - 1
    place = f"record {parts[part].skip + index - first[part]} of {parts[part].filename}"
    return Entry(place, int(label), encoded)


def stream(
  pictures: Pictures,
  *,
  seed: int,
  batch_size: int,
  views: int,
  mesh: Mesh | None = None,
  part: Part = everything,
) -> Callable[[int], Batch]:
  """Returns `batch(step) -> Batch` with image uint8 [V, B, S, S, C], one crop per view.

  Steps may be requested in any order; the steps after the last request are prepared in advance.
  part: which images of each batch.
  """
  preparer = _Preparer(pictures, mesh, part)
  steps = epoch_steps(len(pictures), batch_size)

  def following(step):
    for now, entries in zip(itertools.count(step), _epochs(step), strict=False):
      yield preparer.submit(entries, views, lambda i, v, now=now: (seed, now, i, v))

  def _epochs(step):
    first, position = divmod(step, steps)
    for epoch in itertools.count(first):
      order, start = (seed, epoch), position * batch_size
      yield from pictures.store.batches(pictures.chosen, batch_size, order, start)
      position = 0

  at: int | None = None
  current: Any = None
  rest: Iterator[Any] = iter(())

  def batch(step):
    nonlocal at, current, rest
    if step != at:
      goes_on, at = at is not None and step == at + 1, None  # None: a failure starts again
      rest = rest if goes_on else _ahead(following(step))
      current, at = next(rest)[0], step
    return current

  return batch


def padded_stream(
  pictures: Pictures, batch_size: int, *, mesh: Mesh | None = None
) -> Iterator[tuple[Batch, Bool[Array, " B"]]]:
  """As `batches.padded`, with images cropped for evaluation.

  The mask is also False for corrupt images that are skipped.
  """
  preparer = _Preparer(pictures, mesh)
  store = pictures.store.batches(pictures.chosen, batch_size)
  yield from _ahead(preparer.submit(entries, pad_to=batch_size) for entries in store)


def first_readable(pictures: Pictures) -> Entry:
  """The first entry in canonical order; ValueError, in one line, if all images are corrupt."""
  reason = None
  for (entry,) in pictures.store.batches(pictures.chosen, 1):
    try:
      pictures.read(entry)
      return entry
    except ValueError as error:
      reason = reason or error
  raise ValueError(f"all {len(pictures)} images are corrupt, beginning with {reason}")


def peek(pictures: Pictures, count: int, order: tuple[int, int] | None) -> list[Entry]:
  """The first `count` entries in the `order` (seed, epoch), or in canonical order."""
  return next(pictures.store.batches(pictures.chosen, count, order))


def readable(pictures: Pictures, entries: Iterable[Entry]) -> list[Entry]:
  """The entries without corrupt ones if those are skipped; else all of them."""

  def is_readable(entry):
    with contextlib.suppress(ValueError):
      return pictures.read(entry)

  return [entry for entry in entries if not pictures.skip_corrupt or is_readable(entry)]


def crops(
  pictures: Pictures, entries: Sequence[Entry], views: int, seed: int
) -> tuple[UInt8[np.ndarray, "B S S C"], UInt8[np.ndarray, "V B S S C"]]:
  """(the entries cropped for evaluation, a random crop of each for every view)."""
  images = [pictures.read(entry) for entry in entries]
  seen = [
    [pictures.crop(image, (seed, 0, i, view)) for i, image in enumerate(images)]
    for view in range(views)
  ]
  return np.stack([pictures.evaluation(entry) for entry in entries]), np.array(seen)


def sample(
  pictures: Pictures, count: int, order: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "N S S C"]:
  """The first `count` images in the `order` (seed, epoch), or in canonical order.

  They are cropped for evaluation. Corrupt ones are left out; the run will report them.
  """
  entries = peek(pictures, count, order)

  def pixels_of(entry):
    with contextlib.suppress(ValueError):
      return pictures.evaluation(entry)

  with futures.ThreadPoolExecutor(host.cores()) as pool:
    return np.stack([image for image in pool.map(pixels_of, entries) if image is not None])


def _ahead(results):
  """The results of futures in order, with `AHEAD` more of them running."""
  queue = collections.deque()
  for future in results:
    queue.append(future)
    if len(queue) > AHEAD:
      yield queue.popleft().result()
  while queue:
    yield queue.popleft().result()


class _Preparer:
  """Prepares batches: one thread per core decodes, another sends to the device."""

  def __init__(self, pictures, mesh, part=everything):
    self._pictures, self._mesh, self._part = pictures, mesh or host.mesh(1), part
    self._decoders = futures.ThreadPoolExecutor(host.cores(), "decode")
    self._sender = futures.ThreadPoolExecutor(1, "send")

  def submit(self, entries, views=None, seeds=None, pad_to=None):
    """A future of (Batch, mask).

    views, seeds: the number of random crops of each image, and `seeds(i, view)` of the crop of
    image i; without them images are cropped for evaluation. pad_to: images in the batch.
    """
    pictures = self._pictures
    part = self._part(pad_to or len(entries))
    image = np.zeros((views or 1, len(part), *pictures.shape[1:]), np.uint8)
    labels = np.zeros(len(part), np.int32)

    def fill(place, i, entry):
      labels[place] = entry.label
      if views is None or seeds is None:
        image[0, place] = pictures.evaluation(entry)
        return
      decoded = pictures.read(entry)
      for v in range(views):
        image[v, place] = pictures.crop(decoded, seeds(i, v))

    decoding = {  # only images for the devices of this process
      place: self._decoders.submit(fill, place, i, entries[i])
      for place in local(sharding(self._mesh, len(part)), len(part))
      if (i := int(part[place])) < len(entries)
    }

    def replace(place):
      """By the first readable image after this one in the batch, the same in all processes."""
      i = int(part[place])
      for entry in (*entries[i + 1 :], *entries[:i]):
        with contextlib.suppress(ValueError):
          return fill(place, i, entry)
      return fill(place, i, first_readable(pictures))

    evaluated = views is None
    return self._sender.submit(self._send, image, labels, decoding, evaluated, replace)

  def _send(self, image, labels, decoding, evaluation, replace):
    mask = np.zeros(len(labels), bool)
    for place, done in decoding.items():
      mask[place] = done.exception() is None
      if not mask[place]:
        self._corrupt(done.exception())
    if evaluation:
      return self._placed(Batch(image[0], labels), mask, 0)
    for place in decoding:
      if not mask[place]:
        replace(place)
    return self._placed(Batch(image, labels), mask, 1)

  def _corrupt(self, error):
    pictures = self._pictures
    if not (pictures.skip_corrupt and isinstance(error, ValueError)):
      raise error
    if str(error) not in pictures.skipped:
      pictures.skipped.append(str(error))
      line = f"skipped ({len(pictures.skipped)} so far): {error}"
      if jax.process_index():  # in a pod only process 0 prints to stdout
        print(f"process {jax.process_index()}: {line}", file=sys.stderr, flush=True)
      else:
        print(line, flush=True)

  def _placed(self, batch, mask, axis):
    images = host.place(batch.image, sharding(self._mesh, len(mask), axis=axis))
    labels, mask = host.place((batch.label, mask), sharding(self._mesh, len(mask)))
    return Batch(images, labels), mask
