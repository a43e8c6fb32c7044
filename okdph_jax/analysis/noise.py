"""Accuracy of a trained network against Gaussian noise on its input (the paper's Eq. 9)."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float64, Key
from numpy.typing import ArrayLike

from okdph_jax.analysis import figures
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.points import (
  Images,
  mean_over,
  measure,
  once_per_network,
  speed_note,
  sweep,
)
from okdph_jax.analysis.replicates import merged, repeated
from okdph_jax.analysis.subject import Target
from okdph_jax.core import Variables

STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)


@once_per_network
def _under_noise(net):
  def value(context, strength):
    variables, images, key = context
    keys = jax.random.split(key, len(images.label))

    def one(item):
      image, label, key = item
      noisy = image + strength * jax.random.normal(key, image.shape, image.dtype)
      return measure(net, variables, Images(noisy[None], label[None]))

    return mean_over(one, (*images, keys))

  return value


def under_noise(
  net: nn.Module,
  variables: Variables,
  images: Images,
  strengths: ArrayLike,
  *,
  key: Key[Array, ""],
  title: str = "noise",
) -> tuple[dict[str, Float64[np.ndarray, " P"]], float]:
  """Loss and accuracy with noise N(0, strength^2) on normalised images, at P strengths, and how
  many of these per second.

  The same draw at every strength, and for every network with the same key.
  """
  strengths = np.asarray(strengths, np.float32)
  return sweep(
    _under_noise(net), (variables, images, key), strengths, per_device=1, title=title
  )


def analyse(
  targets: Sequence[Target],
  *,
  images: int = 1000,
  split: str = "test",
  seed: int = 0,
  batch: int = 250,
  strengths: Sequence[float] = STRENGTHS,
) -> Finding:
  """Accuracy of every network under noise of growing strength: `Finding`."""
  rows, numbers, curves = [], {}, {}
  key = jax.random.key(seed)
  for target in targets:
    pictures = target.subject.images(images, split=split, seed=seed, batch=batch)
    found, speed = under_noise(
      target.net, target.variables, pictures, strengths, key=key, title=f"noise {target.name}"
    )
    count, p = pictures.label.size, found["accuracy"]
    numbers[target.name] = found | {"strengths": strengths, "images": count}
    curves[target.name] = {
      "x": strengths,
      "accuracy": 100 * p,
      "accuracy_error": 100 * np.sqrt(p * (1 - p) / count),
      "relative": p / p[0],
    }
    rows.append((target.name, *p))
  headers = ("network", *(f"σ = {strength:g}" for strength in strengths))
  panels = {
    "accuracy": (f"accuracy, {count:,} {split} images [%]", False),
    "relative": ("accuracy / accuracy without noise", False),
  }
  figure = figures.lines(panels, merged(curves), xlabel="noise, σ of the normalised input")
  bars = "standard deviations over runs" if repeated(curves) else "one s.e."
  notes = (
    f"Fractions; the noise is added to the normalised input. Error bars: {bars}.",
    speed_note(speed, count, target.net, target.variables, pictures),
  )
  scalars = {
    name: {f"σ = {s:g}": p for s, p in zip(strengths, row["accuracy"], strict=True)}
    for name, row in numbers.items()
  }
  return Finding(headers, rows, numbers, figure, notes, scalars)
