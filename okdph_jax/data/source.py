"""What each source of images gives: its splits and the names of its classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from okdph_jax.data.split import SEED, Split, StreamedSplit
from okdph_jax.data.stream import Pictures, Store

if TYPE_CHECKING:
  from ml_collections import ConfigDict

VALIDATION = "validation"  # the split that validates, where arrays or a folder have it


class Source(NamedTuple):
  """The splits of a source, in canonical order."""

  place: str  # where they were read
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
  """An option of `config.data` that may be absent or None, then its default."""
  given = getattr(data, name, None)
  return _DEFAULTS[name] if given is None else given


def skips_corrupt(data: ConfigDict) -> bool:
  return option(data, "corrupt") == "skip"


def test_part(data: ConfigDict) -> float | None:
  """The part of the training images to test on where `data.test` is "20%", else None."""
  if not data.test.endswith("%"):
    return None
  try:
    part = float(data.test[:-1]) / 100
  except ValueError:
    part = 0
  if not 0 < part < 1:
    raise ValueError(f"data.test={data.test!r}: a percentage lies between 0% and 100%")
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
      f"data.name={data.name!r} is larger than data.memory_limit and is streamed; set "
      "data.image_size to the side of the square crops, e.g. 224"
    )
  chosen = np.arange(len(labels))
  return StreamedSplit(Pictures(store, chosen, size, channels, skips_corrupt(data)), labels)
