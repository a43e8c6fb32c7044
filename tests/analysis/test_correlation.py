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


def test_few_networks_have_no_correlation():
  numbers = {str(i): {"test_accuracy": i / 4, "sharp": -i} for i in range(4)}
  assert correlation.with_accuracy(numbers, ["sharp"]) == {}
