"""A mean of few values with its confidence interval."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
  """A mean with its 95 % t confidence interval; low and high are None for a single value."""

  n: int
  mean: float
  low: float | None
  high: float | None

  @property
  def half(self) -> float | None:
    """Half the interval's width."""
    return None if self.high is None else self.high - self.mean

  @property
  def clear(self) -> bool:
    """Whether the interval excludes zero."""
    return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Interval:
  """The mean of independent values, one at least, and its t interval; NaN if one is NaN."""
  from scipy import stats

  n = len(values)
  if n < 2:
    return Interval(n, values[0], None, None)
  if any(map(math.isnan, values)):
    return Interval(n, math.nan, math.nan, math.nan)
  mean = statistics.mean(values)
  half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * statistics.stdev(values) / n**0.5
  return Interval(n, mean, float(mean - half), float(mean + half))
