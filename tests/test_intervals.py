"""Student's t interval of a mean, against SciPy's own and a value of the table."""

import math

import pytest
from scipy import stats

from okdph_jax.intervals import Interval, interval


def test_the_interval_is_students():
  found = interval([1.0, 2.0, 3.0])
  assert found.n == 3 and found.mean == 2
  assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
  wanted = stats.ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval(0.95)
  assert (found.low, found.high) == pytest.approx(tuple(wanted))


def test_one_value_has_no_interval():
  assert interval([0.5]) == Interval(1, 0.5, None, None)
  assert interval([0.5]).half is None and not interval([0.5]).clear


def test_what_is_not_known_is_nan():
  found = interval([0.5, math.nan])
  assert math.isnan(found.mean) and not found.clear


def test_it_is_clear_if_it_leaves_out_zero():
  assert interval([1.0, 1.1]).clear and interval([-1.0, -1.1]).clear
  assert not interval([-1.0, 1.1]).clear
