"""Does a measure go with the accuracy? Rank correlation over networks, with its interval."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy import stats

from okdph_jax.analysis import figures
from okdph_jax.analysis.figures import Panels

LEAST = 5  # clusters, such as runs; fewer say nothing


class Correlation(NamedTuple):
  """Spearman's rank correlation and its 95 % interval by bootstrap over clusters."""

  rho: float
  low: float
  high: float
  n: int
  clusters: int


def spearman(
  x: ArrayLike,
  y: ArrayLike,
  clusters: ArrayLike | None = None,
  *,
  seed: int = 0,
  resamples: int = 2000,
) -> Correlation:
  """`Correlation` of x [n] and y [n]; resamples in which one is constant are left out.

  clusters: that of each, such as its run. Networks of one run are not independent, so whole
  clusters are resampled.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  clusters = np.arange(len(x)) if clusters is None else np.asarray(clusters)
  members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]

  def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    found: Any = stats.spearmanr(x, y)
    return float(found.statistic)

  chosen = np.random.default_rng(seed).integers(0, len(members), (resamples, len(members)))
  draws = (np.concatenate([members[i] for i in draw]) for draw in chosen)
  varied = [d for d in draws if np.ptp(x[d]) > 0 and np.ptp(y[d]) > 0]
  found = [rank_correlation(x[d], y[d]) for d in varied]
  low, high = np.quantile(found or np.nan, [0.025, 0.975])
  return Correlation(rank_correlation(x, y), float(low), float(high), len(x), len(members))


def with_accuracy(
  numbers: Mapping[str, Mapping[str, Any]],
  measures: Iterable[str],
  clusters: Mapping[str, str],
) -> dict[str, Correlation]:
  """{measure: Correlation} with the test accuracy; empty for fewer than five clusters.

  numbers: {network: {"test_accuracy": ..., measure: ...}}; clusters: {network: its cluster}.
  """
  own = [clusters[network] for network in numbers]
  if len(set(own)) < LEAST:
    return {}
  accuracy = [row["test_accuracy"] for row in numbers.values()]
  return {m: spearman([row[m] for row in numbers.values()], accuracy, own) for m in measures}


def note(correlations: Mapping[str, Correlation], clusters: str) -> str:
  """The correlations in one line; `clusters` is the word for them."""
  listed = (
    f"{measure.replace('_', ' ')} {c.rho:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"
    for measure, c in correlations.items()
  )
  first = next(iter(correlations.values()))
  return (
    f"Spearman's correlation with the test accuracy over {first.n} networks (95 % interval, "
    f"bootstrap over {first.clusters} {clusters}): " + "; ".join(listed)
  )


@figures.styled
def scatter(
  panels: Panels,
  rows: Mapping[str, Mapping[str, Any]],
  groups: Mapping[str, str],
  correlations: Mapping[str, Correlation],
) -> Figure:
  """Test accuracy against measures, a point per network, a colour per group.

  rows: {network: {measure: value}}; groups: {network: name}.
  """
  columns = min(len(panels) + 1, 3)  # the legend takes the last one
  rows_of_panels = -(-(len(panels) + 1) // columns)
  figure, axes = figures.new(columns, rows_of_panels, width=2.4, height=2.2, sharey=True)
  names = list(dict.fromkeys(groups.values()))
  for axis, (measure, (label, log)) in zip(axes.flat, panels.items(), strict=False):
    for i, name in enumerate(names):
      own = [rows[network] for network in rows if groups[network] == name]
      axis.scatter(
        [row[measure] for row in own],
        [100 * row["test_accuracy"] for row in own],
        s=16,
        color=figures.color(i),
        marker=figures.marker(i),
        edgecolors="white",
        linewidths=0.3,
        label=name,
      )
    found = correlations[measure]
    axis.set_title(f"rank correlation {found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")
    axis.set(xlabel=label)
    if log:
      figures.logarithmic(axis, "x")
  for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
  for axis in axes[:, 0]:
    axis.set_ylabel("test accuracy [%]")
  handles, labels = axes[0, 0].get_legend_handles_labels()
  axes.flat[-1].legend(handles, labels, loc="center", ncols=2 if len(names) > 8 else 1)
  return figure
