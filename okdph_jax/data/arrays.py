"""Arrays of images and labels in an .npz file."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from okdph_jax.data.pictures import resized
from okdph_jax.data.source import VALIDATION, Source, option, test_part
from okdph_jax.data.split import Split
from okdph_jax.errors import one_line

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def read(data: ConfigDict) -> Source:
  """The .npz file `data.dir`, with arrays NAME_images and NAME_labels for each split NAME.

  Images are uint8, [N, H, W, C] or [N, H, W]; labels are integers from 0. `data.train` and
  `data.test` name the splits; a split "validation" and the array `class_names` are optional.
  """
  path, size = pathlib.Path(data.dir).expanduser(), option(data, "image_size")
  try:
    with np.load(path) as file:
      arrays = dict(file)
  except FileNotFoundError:
    raise ValueError(
      f"data.dir={data.dir}: no such file; data.name='arrays' reads an .npz"
    ) from None
  except Exception as error:  # NumPy and zipfile raise anything for a file that is not an .npz
    raise ValueError(f"{path} is not a readable .npz ({one_line(error)})") from None
  names = [data.train] if test_part(data) else [data.train, data.test]
  if VALIDATION not in names and any(key.startswith(f"{VALIDATION}_") for key in arrays):
    names.append(VALIDATION)
  keys = {f"{name}_{kind}" for name in names for kind in ("images", "labels")}
  if missing := sorted(keys - arrays.keys()):
    draw = "; data.test='20%' draws a test set" if f"{data.test}_images" in missing else ""
    raise ValueError(
      f"{path} lacks {', '.join(missing)}; it has {', '.join(arrays) or 'no arrays'}{draw}"
    )
  if ignored := sorted(arrays.keys() - keys - {"class_names"}):
    print(f"{path}: ignored {', '.join(ignored)}", flush=True)
  train, *others = (_split(path, arrays, name, size) for name in names)
  others = dict(zip(names[1:], others, strict=True))
  return Source(
    str(path),
    _class_names(path, arrays, train.labels),
    train,
    others.pop(data.test, None),
    others.pop(VALIDATION, None),
  )


def _class_names(path, arrays, labels):
  if "class_names" in arrays:
    names = arrays["class_names"].tolist()
    return tuple(x.decode() if isinstance(x, bytes) else str(x) for x in names)
  found = np.unique(labels)
  if len(found) and found[0] >= 0 and len(found) <= found[-1]:
    absent = next(label for label in range(len(found) + 1) if label not in found)
    raise ValueError(
      f"{path}: training labels range from {found[0]} to {found[-1]} without {absent}; number "
      "the classes from 0 without gaps, or add class_names with a name for every class"
    )
  return tuple(map(str, range(found.max(initial=-1) + 1)))


def _split(path, arrays, name, size):
  images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    raise ValueError(
      f"{path}: {name}_images is {images.dtype} {list(images.shape)}; it must be uint8 "
      "[N, H, W, C] or [N, H, W]"
    )
  images = images[..., None] if images.ndim == 3 else images
  if images.shape[-1] not in (1, 3):
    raise ValueError(f"{path}: {name}_images has {images.shape[-1]} channels, not 1 or 3")
  if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
    raise ValueError(
      f"{path}: {name}_labels is {labels.dtype} {list(labels.shape)}; it must be one integer "
      f"for each of the {len(images)} images"
    )
  small = labels.astype(np.int32)
  if (small != labels).any():
    raise ValueError(
      f"{path}: {name}_labels has {labels.max()}; number the classes from 0 without gaps"
    )
  return Split(resized(images, size), small)
