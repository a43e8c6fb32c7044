"""Rank correlation over networks."""

import numpy as np
import pytest

from okdph_jax.analysis import correlation


def test_a_monotone_relation_is_one_whatever_its_shape():
  x = np.arange(1.0, 21)
  found = correlation.spearman(x, np.exp(x))
  assert found.rho == pytest.approx(1) and found.low == pytest.approx(1) and found.n == 20
  assert correlation.spearman(x, -x).rho == pytest.approx(-1)


def test_unrelated_numbers_have_an_interval_around_zero():
  x, y = np.random.default_rng(0).normal(size=(2, 40))
  found = correlation.spearman(x, y)
  assert found.low < 0 < found.high
  assert found.low < found.rho < found.high


def test_few_runs_have_no_correlation():
  numbers = {str(i): {"test_accuracy": i / 9, "sharp": -i} for i in range(9)}
  runs = {name: str(int(name) % 4) for name in numbers}
  assert correlation.with_accuracy(numbers, ["sharp"], runs) == {}
  runs["8"] = "a fifth"
  found = correlation.with_accuracy(numbers, ["sharp"], runs)["sharp"]
  assert (found.rho, found.n, found.clusters) == (pytest.approx(-1), 9, 5)


def test_networks_of_one_run_do_not_make_the_interval_narrow():
  x, y = np.random.default_rng(0).normal(size=(2, 12))
  alone = correlation.spearman(x, y)
  copies = correlation.spearman(x.repeat(5), y.repeat(5), np.arange(12).repeat(5))
  assert copies.n == 60 and copies.clusters == 12
  assert copies.rho == pytest.approx(alone.rho)
  width = alone.high - alone.low
  assert copies.high - copies.low == pytest.approx(width, rel=0.05)
  naive = correlation.spearman(x.repeat(5), y.repeat(5))
  assert naive.high - naive.low < 0.7 * width
