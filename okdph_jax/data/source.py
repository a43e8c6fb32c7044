"""`Source`: the splits and class names that `arrays`, `folder`, `digits` and `catalog` read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from okdph_jax.data.split import SEED, Split, StreamedSplit
from okdph_jax.data.stream import Pictures, Store

if TYPE_CHECKING:
  from ml_collections import ConfigDict

VALIDATION = "validation"  # the name of the validation split of arrays and folders


class Source(NamedTuple):
  """The splits of a dataset, in canonical order."""

  place: str  # where they were read from
  class_names: tuple[str, ...]
  train: Split
  test: Split | None  # None: `data.test` is a percentage, to be drawn from `train`
  validation: Split | None = None


_DEFAULTS = {
  "image_size": None,
  "memory_limit": 4 * 2**30,
  "corrupt": "stop",
  "seed": SEED,
  "normalise_as": "",
}


def option(data: ConfigDict, name: str) -> Any:
  """An option of `config.data`, or its default if it is missing or None."""
  given = getattr(data, name, None)
  return _DEFAULTS[name] if given is None else given


def skips_corrupt(data: ConfigDict) -> bool:
  """Whether corrupt images are left out, and do not stop the run."""
  return option(data, "corrupt") == "skip"


def test_part(data: ConfigDict) -> float | None:
  """0.2 if `data.test` is "20%", a part of the training images; None if it names a split."""
  if not data.test.endswith("%"):
    return None
  try:
    part = float(data.test[:-1]) / 100
  except ValueError:
    part = 0
  if not 0 < part < 1:
    raise ValueError(f"data.test={data.test!r} must lie between 0% and 100%")
  return part


def streamed(
  data: ConfigDict,
  store: Store,
  labels: Int32[np.ndarray, " N"],
  size: int | None,
  channels: int,
) -> StreamedSplit:
  """The `StreamedSplit` of all images in a store."""
  if size is None:
    raise ValueError(
      f"data.name={data.name!r} is larger than data.memory_limit and must be streamed; set "
      "data.image_size to the side of the square crops, e.g. 224"
    )
  chosen = np.arange(len(labels))
  return StreamedSplit(Pictures(store, chosen, size, channels, skips_corrupt(data)), labels)
