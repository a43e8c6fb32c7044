"""Where the images come from: TFDS by name, a folder, an .npz file; to arrays in the end.

The canonical order, to which permutations, subsets and the validation split refer: by the
TFDS `id` where the dataset has one, else the order of its records; a folder's files by
their path; arrays as they are.

Only `catalog` imports TensorFlow, inside functions; arrays, folders and digits do not need it.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from okdph_jax.data import catalog
from okdph_jax.data.pictures import is_grey, stacked
from okdph_jax.data.split import SEED, Split, StreamedSplit
from okdph_jax.data.stream import UNKNOWN, Files, Pictures, Shards
from okdph_jax.errors import one_line

# Mean and standard deviation per channel of x / 255 as the paper's release has them; other
# datasets are measured. CIFAR-10's std is the widespread average over images, not that of
# the pixels, kept for comparability.
NORMALISATION = {
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
  "cifar100": ((0.5070752, 0.4865489, 0.4409178), (0.2673343, 0.2564385, 0.2761505)),
  "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Dataset(NamedTuple):
  """A dataset in canonical order; streamed where it exceeds `config.data.memory_limit`."""

  name: str
  place: str  # where it was read
  train: Split
  validation: Split | None
  test: Split
  class_names: tuple
  mean: tuple  # per channel, of x / 255
  std: tuple
  normalisation: str  # where mean and std come from
  distinct: int  # training images without the repetitions of a draw with replacement

  @property
  def classes(self):
    return len(self.class_names)

  @property
  def image_shape(self):
    """(H, W, C)."""
    return self.train.image_shape

  @property
  def summary(self):
    """What was read, in one line."""
    counts = [f"{len(self.train):,} training"]
    if self.distinct != len(self.train):
      counts[0] += f" ({self.distinct:,} distinct)"
    if self.validation:
      counts.append(f"{len(self.validation):,} validation")
    counts.append(f"{len(self.test):,} test images {'x'.join(map(str, self.image_shape))}")
    streamed = ", streamed" if self.train.streamed else ""
    return (
      f"{self.name} ({self.place}{streamed}): {', '.join(counts)}, {self.classes} classes; "
      f"normalisation {self.normalisation}"
    )


class Source(NamedTuple):
  """What a source gives: two splits in canonical order."""

  place: str
  class_names: tuple
  train: Split
  test: Split


def load(config):
  """Reads what `config.data` names and returns its `Dataset`.

  config.data: `name` ("digits", "folder", "arrays", or a TFDS name), `dir`, `train` and
  `test` (TFDS split syntax, or a folder's subfolders), `validation` (images held out of
  training, first), `fraction` and `replacement` (then a part of each class). For TFDS and
  folders also, where given: `image_size` (None: as they are), `memory_limit` (bytes of decoded
  images; a larger dataset is streamed) and `corrupt` ("stop" or "skip" a corrupt image). Raises
  ValueError, in one line, for all a user can cause.
  """
  data = config.data
  _check(data)
  source = {"arrays": read_arrays, "folder": read_folder}.get(data.name, read_tfds)(data)
  _check_source(source, data)
  train, classes = source.train, len(source.class_names)
  if data.validation >= len(train):
    raise ValueError(
      f"data.validation={data.validation} leaves none of {len(train)} images to train on"
    )
  mean, std, origin = normalisation(data.name, train)
  kept, held = hold_out(len(train), data.validation)
  kept = kept[subset(train.labels[kept], classes, data.fraction, data.replacement)]
  return Dataset(
    name=data.name,
    place=source.place,
    train=train if np.array_equal(kept, np.arange(len(train))) else train[kept],
    validation=train[held] if len(held) else None,
    test=source.test,
    class_names=source.class_names,
    mean=mean,
    std=std,
    normalisation=origin,
    distinct=len(np.unique(kept)),
  )


_DEFAULTS = {"image_size": None, "memory_limit": 4 * 2**30, "corrupt": "stop"}


def _option(data, name):
  asked = getattr(data, name, None)  # absent or None: as by default
  return _DEFAULTS[name] if asked is None else asked


def _skips_corrupt(data):
  return _option(data, "corrupt") == "skip"


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
    raise ValueError(
      f"data.corrupt={data.corrupt!r}: a corrupt image can 'stop' or be 'skip'ped"
    )
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
  for name, split in (("training", source.train), ("test", source.test)):
    labels = split.labels
    if not len(labels):
      raise ValueError(f"{source.place}: the {name} split has no images")
    if labels.max() == UNKNOWN:
      continue  # in records that have not been read
    if labels.min() < 0 or labels.max() >= classes:
      raise ValueError(
        f"{source.place}: {name} labels go from {labels.min()} to {labels.max()}, but "
        f"{classes} classes need 0 to {classes - 1}; choose a labelled split"
      )
    if split.image_shape != source.train.image_shape:
      raise ValueError(
        f"{source.place}: training images are {source.train.image_shape} and test images "
        f"{split.image_shape}; set data.image_size to bring them to one size"
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


def normalisation(name, train):
  """(mean, std, where they come from) per channel of x / 255."""
  known = name.split(":")[0]
  if known in NORMALISATION:
    return *NORMALISATION[known], f"as known for {known}"
  mean, std, origin = train.normalisation()
  return mean, std, f"measured on {origin}"


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
  train, test = _split_of(path, arrays, "train"), _split_of(path, arrays, "test")
  names = arrays.get("class_names", np.arange(train.labels.max(initial=0) + 1))
  names = tuple(x.decode() if isinstance(x, bytes) else str(x) for x in names.tolist())
  return Source(str(path), names, train, test)


def _split_of(path, arrays, split):
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
  return Split(images, labels.astype(np.int32))


# TFDS by name, and folders.


def read_tfds(data):
  """A dataset of images with labels by its TFDS name, prepared first if need be."""
  image, label = catalog.supervised(catalog.find(data.name, data.dir), data.name)
  builder = catalog.prepared(data.name, data.dir)
  features, size = builder.info.features, _option(data, "image_size")
  height, width, channels = features[image].shape
  side = size or (height if height == width else None)

  def records(split):
    name = "id" if "id" in features else None
    if size or height is None or width is None:
      found = catalog.records(builder, split, image, label, name)
      skip = _skips_corrupt(data)
      return Split(*stacked(found.names, found.images, found.labels, size, channels, skip))
    found = catalog.records(builder, split, image, label, name, decode=True)  # twice as fast
    return Split(found.images, found.labels)

  def stream(split):
    count = builder.info.splits[split].num_examples
    store, labels = Shards(builder, split, image, label), np.full(count, UNKNOWN, np.int32)
    return _streamed(data, store, labels, side, channels or 3)

  with catalog.reading(builder, f"{data.train}, {data.test}"):
    count = sum(builder.info.splits[split].num_examples for split in (data.train, data.test))
  decoded = count * side**2 * (channels or 3) if side else builder.info.dataset_size
  read = stream if decoded > _option(data, "memory_limit") else records
  names = tuple(features[label].names)
  return Source(str(builder.data_path), names, read(data.train), read(data.test))


def read_folder(data):
  """DIR/train/CLASS/* and DIR/test/CLASS/* (.png, .jpg, .jpeg), every file checked.

  What fits in memory is read through TFDS's ImageFolder; the rest needs no TFDS.
  """
  root, size = pathlib.Path(data.dir).expanduser(), _option(data, "image_size")
  train, test = (_files(root / split) for split in (data.train, data.test))
  classes = tuple(sorted({path.parent.name for path in train}))
  strange = [path.parent for path in test if path.parent.name not in classes]
  if strange:
    raise ValueError(f"{strange[0]}: {data.train} has no class of that name")
  channels = 1 if all(is_grey(path) for path in train[:: max(len(train) // 100, 1)]) else 3

  def read(split, paths):
    labels = np.array([classes.index(path.parent.name) for path in paths], np.int32)
    if size and (len(train) + len(test)) * size**2 * channels > _option(data, "memory_limit"):
      return _streamed(data, Files(paths, labels), labels, size, channels)
    builder = catalog.tensorflow_datasets().folder_dataset.ImageFolder(str(root))
    found = catalog.records(builder, split, "image", "label", "image/filename")
    encoded = dict(zip(found.names, found.images, strict=True))
    names = [str(path) for path in paths]  # ImageFolder also lists hidden files
    skip = _skips_corrupt(data)
    return Split(
      *stacked(names, [encoded[name] for name in names], labels, size, channels, skip)
    )

  return Source(str(root), classes, read(data.train, train), read(data.test, test))


def _files(folder):
  """The images of a split, sorted by their paths."""
  if not folder.is_dir():
    raise ValueError(
      f"{folder} is not a folder; data.name='folder' reads train/CLASS/, test/CLASS/"
    )
  paths = []
  for part in folder.iterdir():
    if part.is_dir() and not part.name.startswith("."):
      here = [x for x in part.iterdir() if x.suffix.lower() in (".png", ".jpg", ".jpeg")]
      here = [x for x in here if not x.name.startswith(".")]
      if not here:
        raise ValueError(f"{part} has no .png, .jpg or .jpeg files; fill it or remove it")
      paths += here
  if not paths:
    raise ValueError(f"{folder} has no classes; put the images of each in a folder of its own")
  return tuple(sorted(paths, key=os.fsencode))


def _streamed(data, store, labels, size, channels):
  if size is None:
    raise ValueError(
      f"data.name={data.name!r} is larger than data.memory_limit and is streamed; set "
      "data.image_size to the side of the square crops, e.g. 224"
    )
  pictures = Pictures(store, np.arange(len(labels)), size, channels, _skips_corrupt(data))
  return StreamedSplit(pictures, labels)
