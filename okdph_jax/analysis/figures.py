"""Figures fit for a paper: sizes in inches, colours that a colour-blind reader tells apart."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

COLORS = (  # Okabe and Ito's palette, its yellow left out: it is lost on white
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#000000",
)
MARKERS = "osD^vP*X"
COLORMAP = "cividis"
STYLE: dict[Any, Any] = {
  "font.size": 8,
  "axes.titlesize": 8,
  "axes.labelsize": 8,
  "legend.fontsize": 7,
  "legend.frameon": False,
  "xtick.labelsize": 7,
  "ytick.labelsize": 7,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.alpha": 0.25,
  "grid.linewidth": 0.5,
  "lines.linewidth": 1.2,
  "lines.markersize": 4,
  "svg.fonttype": "none",  # text stays text
  "svg.hashsalt": "okdph",  # the same figure is the same file
}

Panels = Mapping[str, tuple[str, bool]]  # {measure: (label of the axis, is it logarithmic)}
P = ParamSpec("P")
T = TypeVar("T")


def styled(draw: Callable[P, T]) -> Callable[P, T]:
  """A function that draws, with our style while it does."""

  @functools.wraps(draw)
  def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  return drawn


def new(
  columns: int = 1, rows: int = 1, *, width: float = 3.4, height: float = 2.6, **kwargs: Any
) -> tuple[Figure, Any]:
  """(figure, axes [rows, columns]) of panels of this size in inches."""
  figure = Figure((width * columns, height * rows), layout="constrained")
  return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


@styled
def save(figure: Figure, path: str | os.PathLike[str]) -> None:
  """Writes PATH.png and PATH.svg, without a date, so that equal figures are equal files."""
  figure.savefig(f"{path}.png", dpi=200, metadata={"Software": None})
  figure.savefig(f"{path}.svg", metadata={"Date": None})


def color(i: int) -> str:
  return COLORS[i % len(COLORS)]


def marker(i: int) -> str:
  return MARKERS[i % len(MARKERS)]


def legend(axes: Axes, **kwargs: Any) -> None:
  """A legend beside the axes, where it hides nothing."""
  axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3, **kwargs)


def logarithmic(axes: Axes, direction: str) -> None:
  """Makes an axis, "x" or "y", logarithmic after its data are drawn; its ticks are plain."""
  (axes.set_xscale if direction == "x" else axes.set_yscale)("log")
  low, high = axes.get_xlim() if direction == "x" else axes.get_ylim()
  if not 0 < low < high < math.inf:  # a measure that became infinite or NaN
    return
  decades = math.log10(high / low)
  steps = (1, 1.5, 2, 3, 4, 5, 7) if decades < 0.7 else (1, 2, 5) if decades < 2 else (1,)
  axis = axes.xaxis if direction == "x" else axes.yaxis
  axis.set_major_locator(LogLocator(subs=steps))
  axis.set_major_formatter(StrMethodFormatter("{x:g}"))
  axis.set_minor_formatter(NullFormatter())


@styled
def lines(
  panels: Panels,
  curves: Mapping[str, Mapping[str, Any]],
  *,
  xlabel: str,
) -> Figure:
  """Curves with error bars in panels.

  curves: {name: {"x": [...], measure: [...], "MEASURE_error": [...] or absent}}.
  """
  figure, axes = new(len(panels), width=2.7)
  for axis, (measure, (label, log)) in zip(axes[0], panels.items(), strict=True):
    for i, (name, curve) in enumerate(curves.items()):
      axis.errorbar(
        curve["x"],
        curve[measure],
        curve.get(f"{measure}_error"),
        label=name,
        color=color(i),
        marker=marker(i),
        capsize=2,
        linestyle=("-", "--", ":")[i // len(COLORS) % 3],
      )
    axis.set(xlabel=xlabel, ylabel=label)
    if log:
      logarithmic(axis, "y")
  legend(axes[0, -1])
  return figure


@styled
def dots(panels: Panels, rows: Mapping[str, Mapping[str, Any]]) -> Figure:
  """A dot and an error bar for each network, in panels beside each other.

  rows: {name: {measure: value, "MEASURE_error": value or absent}}.
  """
  names = list(rows)
  columns = min(len(panels), 3)
  size = dict(width=2.2, height=0.6 + 0.16 * len(names))
  figure, axes = new(columns, -(-len(panels) // columns), sharey=True, **size)
  for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
  for axis, (measure, (label, log)) in zip(axes.flat, panels.items(), strict=False):
    for i, name in enumerate(names):
      error = rows[name].get(f"{measure}_error")
      axis.errorbar(
        [rows[name][measure]],
        [i],
        xerr=error and [error],
        color=color(0),
        marker="o",
        capsize=2,
      )
    axis.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
    axis.margins(y=0.5 / max(len(names), 1))
    if log:
      logarithmic(axis, "x")
  axes[0, 0].invert_yaxis()
  return figure
