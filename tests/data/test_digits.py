import ml_collections
import numpy as np
import pytest
from sklearn.datasets import load_digits

from okdph_jax import data
from okdph_jax.data.digits import members


def load(**options):
  defaults = dict(name="digits", dir=None, train="train", test="test", fraction=1.0)
  defaults |= dict(replacement=False, validation=0)
  return data.load(ml_collections.ConfigDict(dict(data=defaults | options)))


def test_the_digits_are_scikit_learn_s():
  dataset, bunch = load(), load_digits()
  for name, split in (("train", dataset.train), ("test", dataset.test)):
    chosen = members(bunch.target, name)
    np.testing.assert_array_equal(split.labels, bunch.target[chosen])
    np.testing.assert_allclose(split.images[..., 0] / 255 * 16, bunch.images[chosen], atol=0.04)
    assert split.images.max() == 255 and split.images.min() == 0
  both = np.concatenate([members(bunch.target, split) for split in ("train", "test")])
  assert sorted(both) == list(range(1_797))
  np.testing.assert_array_equal(
    np.bincount(dataset.test.labels), np.bincount(bunch.target) // 5
  )
  assert "1,442 training, 355 test images 8x8x1, 10 classes" in dataset.summary


def test_other_splits_are_refused():
  with pytest.raises(ValueError, match="has the splits 'train' and 'test', not 'tst'"):
    load(test="tst")
