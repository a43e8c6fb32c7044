"""Loads the `Dataset` that `config.data` describes.

Images are in a canonical order, to which permutations, subsets and the validation split refer:
TFDS datasets by their feature `id` if they have one, else by record; folders by path; arrays
and digits as stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from okdph_jax.data import arrays, catalog, digits, folder
from okdph_jax.data.source import VALIDATION, Source, option, test_part
from okdph_jax.data.split import SEED, Split
from okdph_jax.data.stream import UNKNOWN
from okdph_jax.saved_config import USERS_OWN

if TYPE_CHECKING:  # arrays, folders and digits are read without ml_collections
  from ml_collections import ConfigDict

SOURCES: dict[str, Callable[[ConfigDict], Source]] = {  # other names are TFDS datasets
  "arrays": arrays.read,
  "folder": folder.read,
  "digits": digits.read,
}

# Mean and standard deviation per channel of x / 255. Of the paper's datasets as in its release;
# CIFAR-10's std is the common value, the mean of the std of each image.
NORMALISATION = {
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
  "cifar100": ((0.5070752, 0.4865489, 0.4409178), (0.2673343, 0.2564385, 0.2761505)),
  "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),  # mdistiller's
}


class Dataset(NamedTuple):
  """A dataset in canonical order; streamed if it exceeds `config.data.memory_limit`."""

  name: str
  place: str  # where it was read from
  train: Split
  validation: Split | None
  test: Split
  class_names: tuple[str, ...]
  mean: tuple[float, ...]  # per channel, of x / 255
  std: tuple[float, ...]
  normalisation: str  # where mean and std come from
  distinct: int  # training images, those drawn several times counted once

  @property
  def classes(self) -> int:
    return len(self.class_names)

  @property
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C)."""
    return self.train.image_shape

  def fingerprint(self) -> dict[str, dict[str, Any]]:
    """{split: {"images": count, "digest": hexadecimal of images and labels}}."""
    splits = {"train": self.train, VALIDATION: self.validation, "test": self.test}
    return {name: split.fingerprint() for name, split in splits.items() if split}

  @property
  def summary(self) -> str:
    """A description in one line."""
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


def load(config: ConfigDict) -> Dataset:
  """Loads the `Dataset` that `config.data` describes.

  config.data has:

  - `name`: "digits", "folder", "arrays", or a TFDS dataset; `dir`: where it is.
  - `train`, `test`: names of splits; for TFDS in its split syntax, for the others `test` may be
    a percentage, "20%", which is drawn from each class of `train`.
  - `validation`: the number of training images that are held out; `fraction`, `replacement`:
    the part of each class to train on, drawn after that; `seed`: of these two draws.
  - `normalise_as`: a key of `NORMALISATION`; by default `name`, else mean and std are measured.
  - Optional, for TFDS and folders: `image_size` (None: unchanged), `memory_limit` (in bytes;
    larger datasets are streamed), `corrupt` ("stop" or "skip", at corrupt images).

      >>> digits = load(load_config("digits"))
      >>> len(digits.train), len(digits.test), digits.image_shape, digits.classes
      (1442, 355, (8, 8, 1), 10)

  Raises:
    ValueError: in one line, for data that are missing or wrong, or do not fit the options.
  """
  data = config.data
  _check(data)
  source = SOURCES.get(data.name, catalog.read)(data)
  if part := test_part(data):
    kept, drawn = draw_test(source.train.labels, part)
    source = source._replace(train=source.train[kept], test=source.train[drawn])
  assert source.test is not None  # given, or drawn just now
  _check_source(source)
  train, classes = source.train, len(source.class_names)
  if data.validation and source.validation:
    raise ValueError(
      f"data.validation={data.validation}, but {source.place} has its own validation split; "
      "set data.validation=0, or remove that split"
    )
  if data.validation >= len(train):
    raise ValueError(
      f"data.validation={data.validation} leaves no image of {len(train)} to train on"
    )
  mean, std, origin = normalisation(option(data, "normalise_as") or data.name, train)
  if len(mean) != train.image_shape[-1]:
    raise ValueError(
      f"data.normalise_as={option(data, 'normalise_as')!r} has {len(mean)} channels, the "
      f"images of {source.place} have {train.image_shape[-1]}; leave it empty to measure mean "
      "and std"
    )
  seed = option(data, "seed")
  kept, held = hold_out(len(train), data.validation, seed)
  part = subset(train.labels[kept], classes, data.fraction, data.replacement, seed)
  kept = kept[part]
  return Dataset(
    name=data.name,
    place=source.place,
    train=train if np.array_equal(kept, np.arange(len(train))) else train[kept],
    validation=train[held] if len(held) else source.validation,
    test=source.test,
    class_names=source.class_names,
    mean=mean,
    std=std,
    normalisation=origin,
    distinct=len(np.unique(kept)),
  )


def _check(data):
  if not 0 < data.fraction <= 1:
    raise ValueError(
      f"data.fraction={data.fraction} must lie in (0, 1]; 1.0 is the whole training set"
    )
  if data.validation != int(data.validation) or data.validation < 0:
    raise ValueError(
      f"data.validation={data.validation} must be a number of images; 0 is no validation"
    )
  if option(data, "corrupt") not in ("stop", "skip"):
    raise ValueError(f"data.corrupt={data.corrupt!r} must be 'stop' or 'skip'")
  known = option(data, "normalise_as")
  if known and known not in NORMALISATION:
    raise ValueError(
      f"data.normalise_as={known!r} is not one of {', '.join(NORMALISATION)}; leave it empty "
      "to measure mean and std"
    )
  if data.train == data.test:
    raise ValueError(f"data.train and data.test are both {data.test!r}; test on other images")
  if test_part(data) and data.name not in SOURCES:
    raise ValueError(
      f"data.test={data.test!r} is not for TFDS datasets; use TFDS's split syntax, "
      "data.train='train[:80%]' and data.test='train[80%:]'"
    )
  if data.name in USERS_OWN and not data.dir:
    wanted = (
      "a folder with train/CLASS/ and test/CLASS/" if data.name == "folder" else "an .npz"
    )
    raise ValueError(f"data.name={data.name!r} needs data.dir, the path of {wanted}")


def _check_source(source):
  classes = len(source.class_names)
  if classes < 2:
    raise ValueError(
      f"{source.place} has one class ({', '.join(source.class_names)}); at least two are needed"
    )
  splits = {"training": source.train, "test": source.test}
  if source.validation:
    splits[VALIDATION] = source.validation
  for name, split in splits.items():
    labels = split.labels
    if not len(labels):
      raise ValueError(f"{source.place}: the {name} split has no images")
    split.check_readable()
    if labels.max() == UNKNOWN:
      continue  # the labels are in records that are read later
    if labels.min() < 0 or labels.max() >= classes:
      raise ValueError(
        f"{source.place}: {name} labels range from {labels.min()} to {labels.max()}; {classes} "
        f"classes need labels from 0 to {classes - 1}; choose a labelled split, or number the "
        "classes from 0"
      )
    if split.image_shape != source.train.image_shape:
      raise ValueError(
        f"{source.place}: training images are {source.train.image_shape}, {name} images "
        f"{split.image_shape}; set data.image_size to resize them"
      )


def draw_test(
  labels: Int32[np.ndarray, " N"], part: float
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
  """Draws a test set from each class: ascending indices of the images to train and to test on.

  part: of each class, in (0, 1); at least one image. Drawn without replacement, and independent
  of `config.seed` and `config.data.seed`: all runs test on the same images.
  """
  generator, test = np.random.RandomState(SEED), np.zeros(len(labels), bool)
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    count = max(round(len(members) * part), 1)
    if count == len(members):
      raise ValueError(
        f"data.test={100 * part:g}% leaves no image of class {label}, which has "
        f"{len(members)}, to train on; add images, or lower data.test"
      )
    test[generator.choice(members, count, replace=False)] = True
  return np.flatnonzero(~test), np.flatnonzero(test)


def hold_out(
  size: int, validation: int, seed: int = SEED
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"]]:
  """Splits `size` images: ascending indices of those to train on and of those held out.

  A uniform draw without replacement by `config.data.seed`, not by `config.seed`. So runs with
  other seeds have the same validation images, which no teacher among them was trained on.
  """
  order = np.random.RandomState(seed).permutation(size)
  return np.sort(order[validation:]), np.sort(order[:validation])


def subset(
  labels: Int32[np.ndarray, " N"],
  classes: int,
  fraction: float,
  replacement: bool,
  seed: int = SEED,
) -> Int[np.ndarray, " n"]:
  """Indices of a random `fraction` of the images of each class; 1 gives all images in order.

  Drawn class by class, in order of first appearance, from one legacy NumPy generator. With
  `replacement` and the seed 42 these are the images of the paper's release (499 distinct of
  500 for 1 % of CIFAR-10).
  """
  if fraction == 1:
    return np.arange(len(labels))
  if labels.max() == UNKNOWN:
    raise ValueError(
      f"data.fraction={fraction} needs all labels, which a streamed TFDS dataset does not have "
      "in memory; use TFDS's split syntax, e.g. data.train='train[:10%]'"
    )
  generator = np.random.RandomState(seed)
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


def normalisation(name: str, train: Split) -> tuple[tuple[float, ...], tuple[float, ...], str]:
  """(mean, std, where they come from) per channel of x / 255."""
  known = name.split(":")[0]
  if known in NORMALISATION:
    return *NORMALISATION[known], f"as known for {known}"
  mean, std, origin = train.normalisation()
  return mean, std, f"measured on {origin}"
