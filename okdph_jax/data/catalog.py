"""TensorFlow Datasets (TFDS): finds a dataset by name, prepares it, and reads its records.

TensorFlow and TFDS are imported inside functions: all other sources work without them.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from okdph_jax.data.pictures import stacked
from okdph_jax.data.source import Source, option, skips_corrupt, streamed
from okdph_jax.data.split import Split
from okdph_jax.data.stream import UNKNOWN, Shards
from okdph_jax.errors import DiskError, disk_full, nearest, one_line
from okdph_jax.runtime import host

if TYPE_CHECKING:
  from ml_collections import ConfigDict

Builder = Any  # a tfds.core.DatasetBuilder


def read(data: ConfigDict) -> Source:
  """A TFDS dataset of images with labels, prepared first if need be."""
  image, label = supervised(find(data.name, data.dir), data.name)
  builder = prepared(data.name, data.dir)
  features, size = builder.info.features, option(data, "image_size")
  height, width, channels = features[image].shape
  side = size or (height if height == width else None)

  def loaded(split):
    name = "id" if "id" in features else None
    if size or height is None or width is None:
      found = records(builder, split, image, label, name)
      skip = skips_corrupt(data)
      return Split(*stacked(found.names, found.images, found.labels, size, channels, skip))
    found = records(builder, split, image, label, name, decode=True)  # by TensorFlow: faster
    return Split(found.images, found.labels)

  def as_stream(split):
    count = builder.info.splits[split].num_examples
    store, labels = Shards(builder, split, image, label), np.full(count, UNKNOWN, np.int32)
    return streamed(data, store, labels, side, channels or 3)

  with reading(builder, f"{data.train}, {data.test}"):
    count = sum(builder.info.splits[split].num_examples for split in (data.train, data.test))
  decoded = count * side**2 * (channels or 3) if side else builder.info.dataset_size
  load = as_stream if decoded > option(data, "memory_limit") else loaded
  names = tuple(features[label].names)
  return Source(str(builder.data_path), names, load(data.train), load(data.test))


def find(name: str, directory: str | None = None) -> Builder:
  """The TFDS builder of that name, prepared or not."""
  tfds = tensorflow_datasets()
  options = {"data_dir": str(pathlib.Path(directory).expanduser())} if directory else {}
  try:
    return tfds.builder(name, **options)
  except tfds.core.registered.DatasetNotFoundError:
    known = ["digits", "folder", "arrays", *tfds.list_builders(with_community_datasets=False)]
    hint = nearest(name, known) or "; see tensorflow.org/datasets"
    raise ValueError(
      f"data.name={name!r} is not 'digits', 'folder', 'arrays' or a TFDS dataset{hint}"
    ) from None
  except Exception as error:  # an unknown config or version, a missing extra package
    raise ValueError(f"data.name={name!r}: TFDS says {one_line(error)}") from None


def prepared(name: str, directory: str | None = None) -> Builder:
  """The TFDS builder of that name; prepares the dataset first if need be."""
  builder = find(name, directory)
  if _is_prepared(builder):
    return builder
  try:
    _reach(builder)
    with contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare()
  except Exception as error:  # network, disk, checksums, files that need a manual download
    if full := disk_full(error):
      raise DiskError(f"{name} cannot be prepared in {builder.data_path}: {full}") from None
    if not _is_prepared(builder):  # else another process was faster
      raise ValueError(
        f"data.name={name!r} is not prepared in {builder.data_path}, and preparing it now "
        f"failed ({one_line(error)}); {_remedies(name, directory)}"
      ) from None
  return find(name, directory)


def _is_prepared(builder):
  return (pathlib.Path(builder.data_path) / "dataset_info.json").exists()


def _remedies(name, directory):
  options = f", data_dir={str(directory)!r}" if directory else ""
  return (
    f'online, run python -c "import tensorflow_datasets as tfds; tfds.load({name!r}'
    f"{options})\", or set data.dir to where it is prepared, or use data.name='digits', which "
    "needs no download"
  )


def _reach(builder):
  """Raises ConnectionError if the download host is down; TFDS would retry for minutes."""
  import requests

  if builder.url_infos and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    url = next(iter(builder.url_infos))
    try:
      requests.head(url, timeout=10)
    except requests.RequestException:
      raise ConnectionError(f"no answer from {url}") from None


def supervised(builder: Builder, name: str) -> tuple[str, str]:
  """The names of the image feature and of the label feature."""
  tfds = tensorflow_datasets()
  features = builder.info.features
  image, label = builder.info.supervised_keys or ("image", "label")
  kinds = (tfds.features.Image, tfds.features.ClassLabel)
  for key, kind in zip((image, label), kinds, strict=True):
    if not isinstance(key, str) or key not in features or not isinstance(features[key], kind):
      raise ValueError(
        f"data.name={name!r} is not for image classification: its features are "
        f"{', '.join(features)}; one Image and one ClassLabel are needed"
      )
  if features[image].np_dtype != np.uint8:
    raise ValueError(
      f"data.name={name!r} has images of type {features[image].np_dtype}, not uint8"
    )
  return image, label


class Records(NamedTuple):
  """The records of a split in canonical order."""

  names: list[str]
  images: np.ndarray  # of bytes, or uint8 [N, H, W, C]
  labels: Int32[np.ndarray, " N"]


def records(
  builder: Builder,
  split: str,
  image: str,
  label: str,
  name: str | None = None,
  decode: bool = False,
) -> Records:
  """All `Records` of a split.

  image, label, name: names of features. Sorted by the feature `name`, if there is one.
  """
  tfds = tensorflow_datasets()
  columns = dict(image=image, label=label) | ({"name": name} if name else {})
  with reading(builder, split):
    examples = builder.as_dataset(
      split=split,
      shuffle_files=False,
      read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
      decoders=None if decode else {image: tfds.decode.SkipDecoding()},
    )
    examples = examples.map(lambda x: {key: x[column] for key, column in columns.items()})
    batches = list(tfds.as_numpy(examples.batch(1024)))
  if not batches:
    raise ValueError(
      f"the split {split!r} of {builder.data_path} has no images; choose another split"
    )
  read = {key: np.concatenate([batch[key] for batch in batches]) for key in columns}
  labels = read["label"].astype(np.int32)
  if not name:
    return Records(
      [f"record {i} of {split}" for i in range(len(labels))], read["image"], labels
    )
  names = np.array(read["name"].tolist())  # not of dtype object, which sorts differently
  order = np.argsort(names, kind="stable")
  names = [x.decode() if isinstance(x, bytes) else str(x) for x in names[order].tolist()]
  return Records(names, read["image"][order], labels[order])


@contextlib.contextmanager
def reading(builder: Builder, split: str) -> Iterator[None]:
  """Turns errors of TFDS and TensorFlow into a one-line ValueError that names the split."""
  import tensorflow as tf

  try:
    yield
  except (ValueError, RuntimeError, AssertionError, tf.errors.OpError) as error:
    raise ValueError(
      f"cannot read the split {split!r} of {builder.data_path} ({one_line(error)}); "
      f"there are {', '.join(builder.info.splits)}"
    ) from None


def tensorflow_datasets() -> Any:
  """Imports TFDS, silently and without giving TensorFlow the accelerators."""
  try:
    with host.silent():
      import tensorflow as tf
      import tensorflow_datasets as tfds

      host.hide_accelerators(tf)
  except ImportError as error:
    raise ValueError(
      f"datasets by name need TensorFlow Datasets ({one_line(error)}); pip install tensorflow "
      "tensorflow-datasets, or use data.name='digits', 'folder' or 'arrays'"
    ) from None
  logging.getLogger("urllib3").setLevel(logging.ERROR)  # else a line for each retry
  return tfds
