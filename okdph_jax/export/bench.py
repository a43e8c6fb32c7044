"""Measures the speed of the formats of an exported network on this machine's CPU."""

import os
import time
from typing import NamedTuple

import numpy as np

from okdph_jax.export.model import Model, formats, load

SIZES = (1, 8, 32, 128)  # images at a time
SECONDS = 1.0  # for each format and size


class Speed(NamedTuple):
  """The speed of one format."""

  format: str
  latency_ms: float  # the median for one image
  images_per_second: dict[int, float]  # {images at a time: images / median seconds}


def bench(path: str | os.PathLike[str], threads: int | None = None) -> list[Speed]:
  """The `Speed` of every format in a folder, measured on random pixels.

  Raises:
    ValueError: in one line, if a file cannot be opened.
  """
  found = []
  for name in formats(path):
    model = load(path, name, threads=threads)
    seconds = {size: median_seconds(model, size) for size in SIZES}
    rates = {size: size / each for size, each in seconds.items()}
    found.append(Speed(name, 1000 * seconds[1], rates))
  return found


def median_seconds(model: Model, size: int) -> float:
  """Seconds for `size` images at once: the median of at least five calls after the first."""
  shape = (size, *model.image_shape)
  images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  model.logits(images)  # compiles
  times: list[float] = []
  while len(times) < 5 or sum(times) < SECONDS:
    start = time.perf_counter()
    model.logits(images)
    times.append(time.perf_counter() - start)
  return float(np.median(times))
