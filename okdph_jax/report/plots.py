"""Pictures of runs: learning curves of one, the accuracies of many."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from okdph_jax.intervals import Interval
from okdph_jax.report import readers
from okdph_jax.report.runs import milestones
from okdph_jax.run import Run

# Okabe and Ito's palette, told apart by all common kinds of colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
  "#000000",
  "#E69F00",
  "#56B4E9",
  "#009E73",
  "#F0E442",
  "#0072B2",
  "#D55E00",
  "#CC79A7",
)

COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
LINES = dict(zip(readers.KINDS, ("-", "--", ":"), strict=True))

SEVERAL = "ensemble or fused head"


def curves(run: Run, out: str | os.PathLike[str]) -> None:
  """Draws a run's accuracies over the epochs: a panel per split, a line per reader.

  Solid lines are networks, dashed ones averages of networks, dotted ones several together;
  vertical lines mark where the learning rate drops. The format follows the ending of `out`.
  """
  from matplotlib.ticker import MaxNLocator

  lines, config = run.lines, run.config or {}
  splits = [split for split, found in lines[-1]["accuracy"].items() if found]
  figure, save = _new((6.2 * len(splits), 4.2), "constrained", out)
  panels = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
  for axes, split in zip(panels, splits, strict=True):
    for i, reader in enumerate(lines[-1]["accuracy"][split]):
      there = [line for line in lines if reader in line["accuracy"][split]]
      style: dict[str, Any] = dict(color=COLOURS[i % len(COLOURS)], marker=".", markersize=3)
      axes.plot(
        [line["epoch"] for line in there],
        [100 * line["accuracy"][split][reader] for line in there],
        LINES[readers.kind(reader)],
        label=reader,
        linewidth=1.2,
        **style,
      )
    for epoch in milestones(config, run.planned_epochs):
      axes.axvline(epoch, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel="epoch", ylabel=f"{split} accuracy [%]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
  panels[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
  if config:
    name = f"{config['method']['name']}, {config['network']}, {config['data']['name']}"
    figure.suptitle(f"{name}, seed {config['seed']}", fontsize="medium")
  save()


def views(
  columns: Sequence[tuple[str, str, Any]], rows: Sequence[str], out: str | os.PathLike[str]
) -> None:
  """Draws images: a column per view under its name and specification, a row per image.

  columns: [(name, specification, images [B, H, W, C] in [0, 1]), ...]; rows: class names. The
  picture's format follows the ending of `out`.
  """
  save, axes = _grid(len(rows), len(columns), 1.15, out)
  for (name, specification, images), down in zip(columns, axes.T, strict=True):
    down[0].set_title(f"{name}\n{_broken(specification)}", fontsize=7, linespacing=1.3)
    for image, axis in zip(images, down, strict=True):
      axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
  for name, axis in zip(rows, axes[:, 0], strict=True):
    axis.set_ylabel(name.replace(" ", "\n", 1), fontsize=7, rotation=0, ha="right", va="center")
  save()


def _broken(specification, width=20):
  """Lines of about this width, broken after the separators of a view."""
  lines = [""]
  for part in re.split(r"(?<=[|,])", specification):
    if lines[-1] and len(lines[-1]) + len(part) > width:
      lines.append("")
    lines[-1] += part.strip() if not lines[-1] else part
  return "\n".join(lines)


class Compared(NamedTuple):
  """One row of `comparison`: a method's accuracies after the last epoch, as fractions."""

  label: str
  students: Sequence[float]  # of each run, the mean of its students
  several: Sequence[float]  # of each run, its best ensemble; none where it has no ensemble
  difference: Interval | None  # of the students to the baseline; None for the baseline itself


def comparison(rows: Sequence[Compared], title: str, out: str | os.PathLike[str]) -> None:
  """Draws a row per method, the most accurate on top: accuracies, differences to a baseline.

  The picture's format follows the ending of `out`.
  """

  def mean(fractions):
    return 100 * sum(fractions) / len(fractions)

  rows = sorted(rows, key=lambda row: mean(row.students))
  figure, save = _new((9.5, 1.4 + 0.3 * len(rows)), "constrained", out)
  left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
  for y, row in enumerate(rows):
    if row.several:
      ends = mean(row.students), mean(row.several)
      left.plot(ends, [y, y], color="0.75", linewidth=1, zorder=1)
      style = dict[str, Any](marker="D", facecolors="white", edgecolors=RED, s=30, zorder=2)
      left.scatter(mean(row.several), y, label=SEVERAL, **style)
    left.scatter(mean(row.students), y, color=BLUE, s=36, zorder=3, label="mean of students")
    if len(row.students) > 1:
      runs = [100 * value for value in row.students]
      left.scatter(runs, [y] * len(runs), marker="|", color=BLUE, s=70, label="its runs")
    if row.difference:
      centre, low, high = (
        None if x is None else 100 * x
        for x in (row.difference.mean, row.difference.low, row.difference.high)
      )
      if low is not None:
        right.plot([low, high], [y, y], color=BLUE, linewidth=2)
      right.scatter(centre, y, color=BLUE, s=36, zorder=3)
    else:
      right.annotate("baseline", (0, y), (6, 0), textcoords="offset points", va="center")
  left.set_yticks(range(len(rows)), [row.label for row in rows], fontsize="small")
  left.set(xlabel="test accuracy after the last epoch [%]", title=title)
  left.set_ylim(-0.7, len(rows) - 0.3)
  right.axvline(0, color="0.4", linewidth=0.8, zorder=0)
  right.set_xlabel("difference to the baseline\n[points, 95 % interval]")
  for axes in (left, right):
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
  found = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
  names = [n for n in ("mean of students", "its runs", SEVERAL) if n in found]
  figure.legend(
    [found[n] for n in names], names, loc="outside lower left", fontsize="small", ncols=3
  )
  save()


def _grid(rows, columns, side, out):
  """What saves a figure of squares of that side, and their axes [rows, columns]."""
  figure, save = _new((side * columns + 0.6, side * rows + 0.6), "compressed", out)
  return save, figure.subplots(rows, columns, squeeze=False)


def _new(size, layout, out):
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=size, layout=layout)
  FigureCanvasAgg(figure)

  def save():
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)

  return figure, save
