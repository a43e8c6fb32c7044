"""A confusion matrix as a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a picture needs no JAX
  from okdph_jax.experiment.evaluation import Evaluation


def draw(evaluation: Evaluation, out: str | os.PathLike[str]) -> None:
  """Draws `evaluation.confusion`: rates per true class as colour, counts as numbers."""
  import numpy as np
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  counts, names = evaluation.confusion, evaluation.class_names
  k = len(names)
  rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  side = min(max(4.5, 0.62 * k + 2), 24)
  figure = Figure(figsize=(side + 0.8, side), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  picture = axes.imshow(rates, cmap="cividis", vmin=0, vmax=1)
  if k <= 30:
    axes.set_xticks(range(k), names, rotation=45, ha="right")
    axes.set_yticks(range(k), names)
    for (row, column), count in np.ndenumerate(counts):
      if count:
        text = f"{count}\n{100 * rates[row, column]:.0f}%"
        colour = "black" if rates[row, column] > 0.5 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
  axes.set(xlabel="predicted class", ylabel="true class")
  axes.set_title(
    f"{evaluation.reader} ({evaluation.checkpoint})\n{evaluation.dataset}, accuracy "
    f"{evaluation.accuracy:.4f}",
    fontsize=9,
  )
  figure.colorbar(picture, label="part of the true class", shrink=0.8)
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
