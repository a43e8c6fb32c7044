"""scikit-learn's handwritten digits: a small real dataset that needs no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32

from okdph_jax.data.pictures import resized
from okdph_jax.data.source import Source, option, test_part
from okdph_jax.data.split import Split

if TYPE_CHECKING:
  from ml_collections import ConfigDict

EVERY = 5  # every fifth image of each class is for testing


def read(data: ConfigDict) -> Source:
  """1,797 digits of 13 writers, uint8 [8, 8, 1], from `sklearn.datasets.load_digits`.

  Every fifth image of each class, in scikit-learn's order, is for testing (355 images), the
  others for training (1,442), so both splits have the same writers. The pixel values, 0 to 16,
  are scaled to 0 to 255.

  Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its
  test half).
  """
  for name in (data.train,) if test_part(data) else (data.train, data.test):
    if name not in ("train", "test"):
      raise ValueError(f"data.name='digits' has the splits 'train' and 'test', not {name!r}")
  table = np.loadtxt(_file(), np.uint8, delimiter=",")  # 64 pixels and a label in a row
  images = np.rint(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  images = resized(images, option(data, "image_size"))
  labels = table[:, -1].astype(np.int32)

  def split(name):
    chosen = members(labels, name)
    return Split(images[chosen], labels[chosen])

  test = None if test_part(data) else split(data.test)
  return Source("scikit-learn", tuple(map(str, range(10))), split(data.train), test)


def _file() -> Path:
  """The file that `load_digits` reads; importing scikit-learn would take a second."""
  package = importlib.util.find_spec("sklearn")
  if package is None or package.origin is None:
    raise ModuleNotFoundError("the digits come with scikit-learn: pip install scikit-learn")
  return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def members(labels: Int32[np.ndarray, " N"], split: str) -> Int[np.ndarray, " n"]:
  """Indices of the images of one split, ascending."""
  fifth = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    fifth[np.flatnonzero(labels == label)[EVERY - 1 :: EVERY]] = True
  return np.flatnonzero(fifth == (split == "test"))
