"""Where the images come from: TFDS by name, a folder, an .npz file; to arrays in the end.

The canonical order, to which permutations, subsets and the validation split refer: by the
TFDS `id` where the dataset has one, else the order of its records; a folder's files by
their path; arrays as they are.

TensorFlow and TFDS are imported inside functions: the package, and training from arrays,
do without them.
"""

import contextlib
import difflib
import logging
import os
import pathlib
import sys
from concurrent import futures
from typing import NamedTuple

import numpy as np
from PIL import Image

from okdph_jax import host
from okdph_jax.data.pictures import GREY, decode, evaluation_crop, one_line, pixels, square
from okdph_jax.data.stream import UNKNOWN, Files, Pictures, Shards

# Mean and standard deviation per channel of x / 255 as the paper's release has them; other
# datasets are measured. CIFAR-10's std is the widespread average over images, not that of
# the pixels, kept for comparability. From spec/augmentations.md, section 1.
NORMALISATION = {
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
  "cifar100": ((0.5070752, 0.4865489, 0.4409178), (0.2673343, 0.2564385, 0.2761505)),
  "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

SEED = 42  # of subsets and validation: the same images for every run, method and teacher


class Dataset(NamedTuple):
  """A dataset in canonical order.

  Where it is larger than `config.data.memory_limit`, the images are `stream.Pictures`, which
  have a length and a shape as arrays do, and labels that TFDS's records hold are `UNKNOWN`.
  """

  name: str
  place: str  # where it was read
  train_images: np.ndarray  # uint8 [N, H, W, C]
  train_labels: np.ndarray  # int32 [N]
  validation_images: np.ndarray  # of length 0 without a validation split
  validation_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  class_names: tuple
  mean: tuple  # per channel, of x / 255
  std: tuple
  normalisation: str  # where mean and std come from
  distinct: int  # training images without the repetitions of a draw with replacement

  @property
  def classes(self):
    return len(self.class_names)

  @property
  def summary(self):
    """What was read, in one line."""
    shape = "x".join(map(str, self.train_images.shape[1:]))
    train = f"{len(self.train_labels):,} training"
    if self.distinct != len(self.train_labels):
      train += f" ({self.distinct:,} distinct)"
    held = (
      f" {len(self.validation_labels):,} validation," if len(self.validation_labels) else ""
    )
    streamed = ", streamed" if isinstance(self.train_images, Pictures) else ""
    return (
      f"{self.name} ({self.place}{streamed}): {train},{held} {len(self.test_labels):,} test images "
      f"{shape}, {self.classes} classes; normalisation {self.normalisation}"
    )


class Source(NamedTuple):
  """All a source has to tell: two splits of (images, labels), in canonical order."""

  place: str
  class_names: tuple
  train: tuple
  test: tuple


def load(config):
  """Reads what `config.data` names and returns its `Dataset`.

  config.data: `name` ("digits", "folder", "arrays", or a TFDS name), `dir`, `train` and
  `test` (TFDS split syntax, or a folder's subfolders), `validation` (images held out of
  training, first), `fraction` and `replacement` (then a part of each class). For TFDS and
  folders also, where given: `image_size` (None: as they are), `memory_limit` (bytes of decoded
  images; a larger dataset is streamed) and `corrupt` ("stop" or "skip", of a stream). Raises
  ValueError, in one line, for all a user can cause.
  """
  data = config.data
  _check(data)
  source = {"arrays": read_arrays, "folder": read_folder}.get(data.name, read_tfds)(data)
  _check_source(source, data)
  (images, labels), classes = source.train, len(source.class_names)
  if data.validation >= len(labels):
    raise ValueError(
      f"data.validation={data.validation} leaves none of {len(labels)} images to train on"
    )
  mean, std, origin = normalisation(data.name, images)
  kept, held = hold_out(len(labels), data.validation)
  kept = kept[subset(labels[kept], classes, data.fraction, data.replacement)]
  return Dataset(
    name=data.name,
    place=source.place,
    train_images=images if len(kept) == len(images) else images[kept],
    train_labels=labels[kept],
    validation_images=images[held],
    validation_labels=labels[held],
    test_images=source.test[0],
    test_labels=source.test[1],
    class_names=source.class_names,
    mean=mean,
    std=std,
    normalisation=origin,
    distinct=len(np.unique(kept)),
  )


_DEFAULTS = {"image_size": None, "memory_limit": 4 * 2**30, "corrupt": "stop"}


def _option(data, name):
  return getattr(data, name, _DEFAULTS[name])


def _check(data):
  if not 0 < data.fraction <= 1:
    raise ValueError(
      f"data.fraction={data.fraction}: a part of the training set is asked for, in (0, 1]; "
      "1.0 is all of it"
    )
  if data.validation != int(data.validation) or data.validation < 0:
    raise ValueError(
      f"data.validation={data.validation}: a number of images is asked for, 0 for no validation"
    )
  if _option(data, "corrupt") not in ("stop", "skip"):
    raise ValueError(f"data.corrupt={data.corrupt!r}: a corrupt image can 'stop' or be 'skip'ped")
  if data.name in ("folder", "arrays") and not data.dir:
    wanted = (
      "a folder with train/CLASS/ and test/CLASS/" if data.name == "folder" else "an .npz"
    )
    raise ValueError(f"data.name={data.name!r} needs data.dir, the path of {wanted}")


def _check_source(source, data):
  classes = len(source.class_names)
  if classes < 2:
    raise ValueError(
      f"{source.place} has one class ({', '.join(source.class_names)}); a classifier needs two"
    )
  for split, (images, labels) in (("training", source.train), ("test", source.test)):
    if not len(labels):
      raise ValueError(f"{source.place}: the {split} split has no images")
    if labels.max() == UNKNOWN:
      continue  # in records that have not been read
    if labels.min() < 0 or labels.max() >= classes:
      raise ValueError(
        f"{source.place}: {split} labels go from {labels.min()} to {labels.max()}, but "
        f"{classes} classes need 0 to {classes - 1}; choose a labelled split"
      )
    if images.shape[1:] != source.train[0].shape[1:]:
      raise ValueError(
        f"{source.place}: training images are {source.train[0].shape[1:]} and test images "
        f"{images.shape[1:]}; set data.image_size to bring them to one size"
      )


# What is trained on.


def hold_out(size, validation):
  """Which of `size` images train and which validate: two ascending int arrays.

  A uniform draw without replacement, the same for every `config.seed`: so runs differ in
  training only, and no teacher from another run has seen the validation images.
  """
  order = np.random.RandomState(SEED).permutation(size)
  return np.sort(order[validation:]), np.sort(order[:validation])


def subset(labels, classes, fraction, replacement):
  """Indices of `fraction` of each class's images.

  Class by class in order of first appearance, from one legacy NumPy generator. With
  `replacement` this is the recipe of the paper's release (499 distinct images of 500 for
  1 % of CIFAR-10); without it no image comes twice. A fraction of 1 is all, in order.
  """
  if fraction == 1:
    return np.arange(len(labels))
  if labels.max() == UNKNOWN:
    raise ValueError(
      f"data.fraction={fraction} of each class needs the labels, which a streamed TFDS dataset "
      "has in its records; take a part with TFDS's syntax, e.g. data.train='train[:10%]'"
    )
  generator = np.random.RandomState(SEED)
  chosen = []
  for label in _by_appearance(labels):
    members = np.flatnonzero(labels == label)
    count = round(len(members) * fraction)
    if not count:
      raise ValueError(
        f"data.fraction={fraction} leaves no image of class {label}, which has {len(members)}; "
        f"at least {1 / len(members):.2g} is needed"
      )
    chosen.append(generator.choice(members, count, replace=replacement))
  return np.concatenate(chosen)


def _by_appearance(labels):
  values, first = np.unique(labels, return_index=True)
  return values[np.argsort(first)]


def normalisation(name, images):
  """(mean, std, where they come from) per channel of x / 255, for uint8 [N, H, W, C]."""
  known = name.split(":")[0]
  if known in NORMALISATION:
    return *NORMALISATION[known], f"as known for {known}"
  origin = "measured on the training split"
  if isinstance(images, Pictures):
    images = _sample(images)
    origin = f"measured on {len(images):,} training images"
  channels, count = images.shape[-1], images.size / images.shape[-1]
  total, square = np.zeros(channels), np.zeros(channels)
  for start in range(
    0, len(images), 1024
  ):  # in pieces: the whole in float64 is 8 times as large
    part = images[start : start + 1024].reshape(-1, channels) / 255
    total, square = total + part.sum(0), square + np.square(part).sum(0)
  mean = total / count
  std = np.sqrt(np.maximum(square / count - mean**2, 0))
  std = np.maximum(std, 1 / 255)  # a constant channel stays finite
  return tuple(mean.tolist()), tuple(std.tolist()), origin


def _sample(pictures, count=1_000):
  """The first images of an epoch, decoded; corrupt ones are left for the run to find."""
  with futures.ThreadPoolExecutor(host.cores()) as pool:
    entries = next(pictures.store.batches(pictures.chosen, count, order=(SEED, 0)))

    def picture(entry):
      with contextlib.suppress(ValueError, OSError):
        image = decode(entry.name, entry.read(), pictures.channels)
        return pixels(evaluation_crop(image, pictures.size))

    return np.stack([image for image in pool.map(picture, entries) if image is not None])


# Arrays.

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_arrays(data):
  """An .npz of uint8 images, [N, H, W, C] or [N, H, W], labels, and perhaps `class_names`."""
  path = pathlib.Path(data.dir).expanduser()
  try:
    with np.load(path) as file:
      arrays = dict(file)
  except FileNotFoundError:
    raise ValueError(
      f"data.dir={data.dir}: no such file; data.name='arrays' reads an .npz"
    ) from None
  except (
    Exception
  ) as error:  # a folder, no archive, pickled objects: NumPy and zipfile raise on each
    raise ValueError(f"{path} is not a readable .npz ({one_line(error)})") from None
  missing = [key for key in _KEYS if key not in arrays]
  if missing:
    raise ValueError(
      f"{path} has {', '.join(arrays) or 'nothing'}; it lacks {', '.join(missing)}"
    )
  train, test = _pair(path, arrays, "train"), _pair(path, arrays, "test")
  names = arrays.get("class_names", np.arange(train[1].max(initial=0) + 1))
  names = tuple(x.decode() if isinstance(x, bytes) else str(x) for x in names.tolist())
  return Source(str(path), names, train, test)


def _pair(path, arrays, split):
  images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise ValueError(
      f"{path}: {split}_images is {images.dtype} {list(images.shape)}; uint8 [N, H, W, C] with "
      "values from 0 to 255 is needed"
    )
  images = images.reshape(*images.shape[:3], -1)
  if images.shape[-1] not in (1, 3):
    raise ValueError(f"{path}: {split}_images has {images.shape[-1]} channels; 1 or 3 are read")
  if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
    raise ValueError(
      f"{path}: {split}_labels is {labels.dtype} {list(labels.shape)}; one integer for each of "
      f"{len(images)} images is needed"
    )
  return images, labels.astype(np.int32)


# TFDS, and folders, which are read through it.


def read_tfds(data):
  """A dataset of images with labels by its TFDS name, prepared first if need be."""
  builder = _builder(data.name, data.dir)
  image, label = _supervised(builder, data.name)
  builder = prepared(data.name, data.dir)
  features, size = builder.info.features, _option(data, "image_size")
  shape, names = features[image].shape, tuple(features[label].names)
  columns = dict(image=image, label=label, name="id" if "id" in features else None)
  as_stored = size is None and None not in shape  # then TensorFlow decodes, twice as fast

  def count(split):
    with _tfds_errors(builder, data, split):
      return builder.info.splits[split].num_examples

  side = size or max(shape[:2], key=lambda x: x or 0)
  counts = [count(split) for split in (data.train, data.test)]
  if _is_large(sum(counts), side, data):
    splits = [
      (Pictures(Shards(builder, split, image, label), np.arange(n), side, shape[-1] or 3, skip), ...)
    ]
  def read(split):
    try:
      records = _records(builder, split, **columns, decode=as_stored)
    except (ValueError, RuntimeError, _tf_error()) as error:
      raise ValueError(
        f"data.name={data.name!r}: cannot read {split!r} from {builder.data_path} "
        f"({one_line(error)}); there are {', '.join(builder.info.splits)}"
      ) from None
    if as_stored:
      return records.images, records.labels
    return _decoded(records, size, shape[-1]), records.labels

  train, test = read(data.train), read(data.test)
  return Source(str(builder.data_path), tuple(features[label].names), train, test)


def read_folder(data):
  """DIR/train/CLASS/* and DIR/test/CLASS/* (.png, .jpg, .jpeg), every file checked."""
  root = pathlib.Path(data.dir).expanduser()
  classes = _classes(root / data.train)
  unknown = [name for name in _classes(root / data.test) if name not in classes]
  if unknown:
    raise ValueError(f"{root / data.test / unknown[0]}: {data.train} has no class of that name")
  builder = _tfds().folder_dataset.ImageFolder(str(root))

  def read(split, channels=None):
    records = _records(builder, split, "image", "label", "image/filename")
    within = [pathlib.Path(os.fsdecode(name)).parent.name for name in records.names]
    empty = [name for name in _classes(root / split) if name not in within]
    if empty:
      raise ValueError(f"{root / split / empty[0]} has no .png, .jpg or .jpeg files")
    labels = np.array([classes.index(name) for name in within], np.int32)
    return _decoded(records, getattr(data, "image_size", None), channels), labels

  train = read(data.train)
  return Source(str(root), classes, train, read(data.test, train[0].shape[-1]))


def _classes(folder):
  if not folder.is_dir():
    raise ValueError(
      f"{folder} is not a folder; data.name='folder' reads train/CLASS/ and test/CLASS/"
    )
  return tuple(sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name[0] != "."))


class Records(NamedTuple):
  """The records of a split in canonical order."""

  names: np.ndarray
  images: np.ndarray  # of bytes, or uint8 [N, H, W, C]
  labels: np.ndarray  # int32


def _records(builder, split, image, label, name, decode=False):
  tfds = _tfds()
  columns = dict(image=image, label=label) | ({"name": name} if name else {})
  examples = builder.as_dataset(
    split=split,
    shuffle_files=False,
    read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    decoders=None if decode else {image: tfds.decode.SkipDecoding()},
  )
  examples = examples.map(lambda x: {key: x[column] for key, column in columns.items()})
  batches = list(tfds.as_numpy(examples.batch(1024)))
  if not batches:
    return Records(*(np.array([], kind) for kind in ("S", object, np.int32)))
  read = {key: np.concatenate([batch[key] for batch in batches]) for key in columns}
  labels = read["label"].astype(np.int32)
  if not name:
    return Records(np.array([f"record {i}" for i in range(len(labels))]), read["image"], labels)
  names = np.array(read["name"].tolist())  # bytes compare as such once they are no objects
  order = np.argsort(names, kind="stable")
  return Records(names[order], read["image"][order], labels[order])


def _decoded(records, size, channels=None):
  """Decoded images, uint8 [N, H, W, C].

  C is 1 if `channels` says so, or where it says nothing and all images are grey. With a
  `size` the shorter side is resized to it and the central square kept; without, all images
  must have one size.
  """

  def picture(name, encoded):
    image = decode(_text(name), encoded, channels)
    return np.asarray(square(image, size) if size else image)

  with futures.ThreadPoolExecutor(host.cores()) as pool:
    images = list(pool.map(picture, records.names, records.images))
  if not images:
    return np.zeros((0, 1, 1, channels or 1), np.uint8)
  for name, image in zip(records.names, images, strict=True):
    if image.shape[:2] != images[0].shape[:2]:
      sizes = ["x".join(map(str, x.shape[1::-1])) for x in (image, images[0])]
      raise ValueError(
        f"images differ in size: {_text(name)} is {sizes[0]}, {_text(records.names[0])} is "
        f"{sizes[1]}; set data.image_size, e.g. to 64"
      )
  if len({image.ndim for image in images}) == 2:  # grey ones among coloured ones
    images = [np.stack([x] * 3, -1) if x.ndim == 2 else x for x in images]
  images = np.stack(images)
  return images if images.ndim == 4 else images[..., None]


def _supervised(builder, name):
  """The names of the image and of its label."""
  tfds = _tfds()
  features = builder.info.features
  image, label = builder.info.supervised_keys or ("image", "label")
  kinds = (tfds.features.Image, tfds.features.ClassLabel)
  for key, kind in zip((image, label), kinds, strict=True):
    if not isinstance(key, str) or key not in features or not isinstance(features[key], kind):
      raise ValueError(
        f"data.name={name!r} is not for image classification: it has no single image with a "
        f"class label, but {', '.join(features)}"
      )
  if features[image].np_dtype != np.uint8:
    raise ValueError(
      f"data.name={name!r} has images of {features[image].np_dtype}; uint8 is read"
    )
  return image, label


def prepared(name, directory=None):
  """The TFDS builder of a prepared dataset; prepares it first where it is not."""
  builder = _builder(name, directory)
  if _is_prepared(builder):
    return builder
  quietly = _silent if name == "digits" else contextlib.nullcontext
  try:
    _reach(builder)
    with quietly(), contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare()
  except Exception as error:  # the network, the disk, checksums, files to be put by hand
    if not _is_prepared(builder):  # else another process was faster
      options = f", data_dir={str(directory)!r}" if directory else ""
      code = f"import tensorflow_datasets as tfds; tfds.load({name!r}{options})"
      remedies = (
        f'run python -c "{code}" with a network, point data.dir to where it is prepared'
      )
      if name == "digits":
        remedies = "choose a data.dir with room that can be written to"
      else:
        remedies += ", or use data.name='digits', which needs no network"
      raise ValueError(
        f"data.name={name!r} is not prepared in {builder.data_path}, and preparing it now "
        f"failed ({one_line(error)}); {remedies}"
      ) from None
  return _builder(name, directory)


def _builder(name, directory):
  tfds = _tfds()
  options = {"data_dir": str(pathlib.Path(directory).expanduser())} if directory else {}
  try:
    if name == "digits":
      from okdph_jax.data.digits import Digits

      return Digits(**options)
    return tfds.builder(name, **options)
  except tfds.core.registered.DatasetNotFoundError:
    known = ["digits", "folder", "arrays", *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = (
      f"did you mean {' or '.join(map(repr, near))}?" if near else "see tensorflow.org/datasets"
    )
    raise ValueError(
      f"data.name={name!r} is neither 'digits', 'folder', 'arrays' nor a TFDS dataset; {hint}"
    ) from None
  except Exception as error:  # an unknown config or version, a missing extra package
    raise ValueError(f"data.name={name!r}: TFDS says {one_line(error)}") from None


def _is_prepared(builder):
  return (pathlib.Path(builder.data_path) / "dataset_info.json").exists()


def _reach(builder):
  """Raises unless the host of the downloads answers: TFDS itself would try for minutes."""
  import requests

  if builder.url_infos and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    url = next(iter(builder.url_infos))
    try:
      requests.head(url, timeout=10)
    except requests.RequestException:
      raise ConnectionError(f"no answer from {url}") from None


def _tfds():
  """tensorflow_datasets, with TensorFlow quiet and off the accelerators, which are JAX's."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  try:
    with _silent():
      import tensorflow as tf
      import tensorflow_datasets as tfds

      for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
  except ImportError as error:
    raise ValueError(
      f"datasets by name and folders are read by TensorFlow Datasets ({one_line(error)}); pip "
      "install tensorflow tensorflow-datasets, or use data.name='arrays', which needs neither"
    ) from None
  logging.getLogger("urllib3").setLevel(logging.ERROR)  # else a line for each retry
  return tfds


@contextlib.contextmanager
def _silent():
  """Nothing on stderr: TensorFlow's libraries greet on import, before any log level counts."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def _tf_error():
  import tensorflow as tf

  return tf.errors.OpError


def _text(name):
  return name.decode() if isinstance(name, bytes) else str(name)
