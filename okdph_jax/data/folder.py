"""Image files in folders, one folder per class."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from okdph_jax.data.pictures import is_grey, stacked, suffixes
from okdph_jax.data.source import VALIDATION, Source, option, skips_corrupt, streamed, test_part
from okdph_jax.data.split import Split
from okdph_jax.data.stream import Files

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def read(data: ConfigDict) -> Source:
  """DIR/train/CLASS/*, DIR/test/CLASS/* and, if it exists, DIR/validation/CLASS/*.

  `data.train` and `data.test` name the folders; "." is DIR itself. All files that Pillow can
  read are used; the others are counted in one printed line. Images have one channel if all
  files of all splits do, else three.
  """
  root, size = pathlib.Path(data.dir).expanduser(), option(data, "image_size")
  train = _files(root, data.train)
  test = [] if test_part(data) else _files(root, data.test)
  has_validation = (
    VALIDATION not in (data.train, data.test)
    and data.train != "."
    and (root / VALIDATION).is_dir()
  )
  validation = _files(root, VALIDATION) if has_validation else []
  classes = tuple(sorted({path.parent.name for path in train}))
  for path in (*test, *validation):
    if path.parent.name not in classes:
      raise ValueError(f"{path.parent}: {data.train} has no class of that name")
  everything = (*train, *test, *validation)
  channels = 1 if all(is_grey(path) for path in everything) else 3
  decoded = len(everything) * (size or 0) ** 2 * channels

  def split(paths):
    labels = np.array([classes.index(path.parent.name) for path in paths], np.int32)
    if decoded > option(data, "memory_limit"):
      return streamed(data, Files(paths, labels), labels, size, channels)
    return Split(*stacked(paths, paths, labels, size, channels, skips_corrupt(data)))

  return Source(
    str(root),
    classes,
    split(train),
    split(test) if test else None,
    split(validation) if validation else None,
  )


def _files(root, name):
  """The images of a split, sorted by path; hidden files are ignored."""
  folder = root / name
  if not folder.is_dir():
    raise ValueError(
      f"{folder} is not a folder; data.name='folder' reads train/CLASS/ and test/CLASS/, or "
      "with data.train=. and data.test=20% folders CLASS/, from which it draws a test set"
    )
  paths, ignored = [], []
  for part in _visible(folder):
    if not part.is_dir():
      ignored.append(pathlib.Path(part))
      continue
    images = []
    for file in _visible(part):
      path = pathlib.Path(file)
      readable = file.is_file() and path.suffix.lower() in suffixes()
      (images if readable else ignored).append(path)
    if not images:
      raise ValueError(f"{part.path} has no images; fill it or remove it")
    paths += images
  if not paths:
    raise ValueError(f"{folder} has no classes; put the images of each class in its own folder")
  if ignored:
    print(
      f"{folder}: ignored {len(ignored)} files that are not images by their names, e.g. "
      f"{min(ignored, key=os.fsencode).relative_to(folder)}",
      flush=True,
    )
  return tuple(sorted(paths, key=os.fsencode))


def _visible(folder):
  """The entries of a folder that are not hidden, as `os.DirEntry`."""
  with os.scandir(folder) as entries:
    return [entry for entry in entries if not entry.name.startswith(".")]
