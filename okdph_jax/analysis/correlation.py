"""Does a measure go with the accuracy? Rank correlation over networks, with its interval."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from okdph_jax.analysis import figures

LEAST = 5  # networks; fewer say nothing


class Correlation(NamedTuple):
  """Spearman's rank correlation and its 95 % interval by bootstrap over the networks."""

  rho: float
  low: float
  high: float
  n: int


def spearman(x, y, *, seed=0, resamples=2000):
  """`Correlation` of x [n] and y [n]; resamples in which one is constant are left out."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  draws = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
  varied = [d for d in draws if np.ptp(x[d]) > 0 and np.ptp(y[d]) > 0]
  found = [stats.spearmanr(x[d], y[d]).statistic for d in varied]
  low, high = np.quantile(found, [0.025, 0.975])
  return Correlation(float(stats.spearmanr(x, y).statistic), float(low), float(high), len(x))


def with_accuracy(numbers, measures):
  """{measure: Correlation} with the test accuracy; empty for fewer than five networks.

  numbers: {network: {"test_accuracy": ..., measure: ...}}.
  """
  if len(numbers) < LEAST:
    return {}
  accuracy = [row["test_accuracy"] for row in numbers.values()]
  return {m: spearman([row[m] for row in numbers.values()], accuracy) for m in measures}


def note(correlations):
  """The correlations in one line."""
  listed = (
    f"{measure.replace('_', ' ')} {c.rho:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"
    for measure, c in correlations.items()
  )
  n = next(iter(correlations.values())).n
  return (
    f"Spearman's correlation with the test accuracy over {n} networks (95 % bootstrap): "
    + "; ".join(listed)
  )


@figures.styled
def scatter(panels, rows, groups, correlations):
  """Test accuracy against measures, a point per network, a colour per group.

  panels: as in `figures.lines`. rows: {network: {measure: value}}; groups: {network: name}.
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
