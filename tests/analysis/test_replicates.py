"""Replicates: what counts as one value, and differences within a seed."""

import numpy as np
import pytest

from okdph_jax.analysis import replicates
from okdph_jax.intervals import Interval, interval

ROWS = {
  "okdph-seed42: student_0": {"sharp": 1.0, "curve": np.array([1.0, 2.0])},
  "okdph-seed42: student_1": {"sharp": 3.0, "curve": np.array([3.0, 2.0])},
  "okdph-seed43: student_0": {"sharp": 5.0, "curve": np.array([4.0, 6.0])},
  "base-seed42": {"sharp": 1.0, "curve": np.zeros(2)},
  "base-seed43": {"sharp": 3.5, "curve": np.zeros(2)},
  "base-seed44": {"sharp": None, "curve": np.zeros(2)},
}
SHARP = {name: {"sharp": row["sharp"]} for name, row in ROWS.items()}


def test_entries_and_seeds_are_in_the_names():
  for name, expected in (
    ("okdph-release-seed42: student_0", ("okdph-release", "42")),
    ("born-seed43/generation_1", ("born/generation_1", "43")),
    ("digits: student_0", ("digits", "")),
    ("my-seedling", ("my-seedling", "")),
  ):
    assert replicates.entry_and_seed(name) == expected


def test_the_networks_of_a_run_count_as_one_value():
  found = replicates.summary(SHARP, "base")
  sharp = found["entries"]["okdph"]["sharp"]
  assert sharp["mean"] == 3.5 and sharp["sd"] == pytest.approx(np.std([2, 5], ddof=1))
  assert found["entries"]["base"]["runs"] == 3
  difference = found["differences"]["okdph"]  # 2 - 1 and 5 - 3.5, the third seed left out
  assert difference["runs"] == 2 and difference["sharp"].mean == 1.25
  assert difference["sharp"] == interval([1.0, 1.5])


def test_merged_curves_are_means_and_deviations_over_runs():
  found = replicates.merged({name: row | {"curve_error": [7, 7]} for name, row in ROWS.items()})
  assert list(found) == ["okdph", "base"]
  np.testing.assert_allclose(found["okdph"]["curve"], [3, 4])
  np.testing.assert_allclose(found["okdph"]["curve_error"], np.sqrt(2) * np.array([1, 2]))
  once = {name: ROWS[name] for name in list(ROWS)[:2]}
  assert replicates.merged(once) is once
  shorter = ROWS | {"okdph-seed43: student_0": {"sharp": 5.0, "curve": np.zeros(1)}}
  assert replicates.merged(shorter) is shorter


def test_the_table_has_means_and_differences():
  text = replicates.table(replicates.summary(SHARP, "base"), "base")
  assert "3.5 ± 2.1" in text and "+1.25 [-1.93, +4.43]" in text
  assert replicates.difference(Interval(1, 1.25, None, None)) == "+1.25"
  assert replicates.difference(Interval(3, 1.25, 0.25, 2.25)) == "**+1.25 [+0.25, +2.25]**"
