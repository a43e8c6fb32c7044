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

LEAST = 5  # networks; fewer say nothing


class Correlation(NamedTuple):
  """Spearman's rank correlation and its 95 % interval by bootstrap over the runs."""

  rho: float
  low: float
  high: float
  n: int
  runs: int


def spearman(
  x: ArrayLike,
  y: ArrayLike,
  runs: ArrayLike | None = None,
  *,
  seed: int = 0,
  resamples: int = 2000,
) -> Correlation:
  """`Correlation` of x [n] and y [n]; resamples in which one is constant are left out.

  runs: the run of each. Networks of one run are not independent, so whole runs are resampled.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  runs = np.arange(len(x)) if runs is None else np.asarray(runs)
  members = [np.flatnonzero(runs == run) for run in np.unique(runs)]

  def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    found: Any = stats.spearmanr(x, y)
    return float(found.statistic)

  chosen = np.random.default_rng(seed).integers(0, len(members), (resamples, len(members)))
  draws = (np.concatenate([members[i] for i in draw]) for draw in chosen)
  varied = [d for d in draws if np.ptp(x[d]) > 0 and np.ptp(y[d]) > 0]
  found = [rank_correlation(x[d], y[d]) for d in varied]
  low, high = np.quantile(found, [0.025, 0.975])
  return Correlation(rank_correlation(x, y), float(low), float(high), len(x), len(members))


def with_accuracy(
  numbers: Mapping[str, Mapping[str, Any]], measures: Iterable[str], runs: Mapping[str, str]
) -> dict[str, Correlation]:
  """{measure: Correlation} with the test accuracy; empty for fewer than five networks.

  numbers: {network: {"test_accuracy": ..., measure: ...}}; runs: {network: its run}.
  """
  if len(numbers) < LEAST:
    return {}
  accuracy = [row["test_accuracy"] for row in numbers.values()]
  own = [runs[network] for network in numbers]
  return {m: spearman([row[m] for row in numbers.values()], accuracy, own) for m in measures}


def note(correlations: Mapping[str, Correlation]) -> str:
  """The correlations in one line."""
  listed = (
    f"{measure.replace('_', ' ')} {c.rho:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"
    for measure, c in correlations.items()
  )
  first = next(iter(correlations.values()))
  return (
    f"Spearman's correlation with the test accuracy over {first.n} networks of {first.runs} "
    "runs (95 % interval, bootstrap over runs): " + "; ".join(listed)
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
  figure, axes = figures.new(len(panels), width=2.4, height=2.5, sharey=True)
  names = list(dict.fromkeys(groups.values()))
  for axis, (measure, (label, logarithmic)) in zip(axes[0], panels.items(), strict=True):
    for i, name in enumerate(names):
      own = [rows[network] for network in rows if groups[network] == name]
      axis.scatter(
        [row[measure] for row in own],
        [100 * row["test_accuracy"] for row in own],
        s=22,
        color=figures.color(i),
        marker=figures.marker(i),
        edgecolors="white",
        linewidths=0.4,
        label=name,
      )
    found = correlations[measure]
    axis.set_title(f"rank correlation {found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")
    axis.set(xlabel=label)
    if logarithmic:
      axis.set_xscale("log")
  axes[0, 0].set_ylabel("test accuracy [%]")
  figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=min(len(names), len(panels)),
  )
  return figure
