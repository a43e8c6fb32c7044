import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

LOAD = """
import resource
import sys
import ml_collections
from okdph_jax import data
if len(sys.argv) > 2:  # the largest file that can be written
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
options = dict(name="digits", dir=sys.argv[1], train="train", test="test", fraction=1.0,
               replacement=False, validation=0)
try:
  print(data.load(ml_collections.ConfigDict(dict(data=options))).summary)
except ValueError as error:
  print(error)
"""


def start(*arguments):
  command = [sys.executable, "-c", LOAD, *map(str, arguments)]
  return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return tmp_path_factory.mktemp("tensorflow_datasets")


def test_two_first_uses_at_once(directory):
  for process in [start(directory), start(directory)]:
    line, _ = process.communicate(timeout=200)
    assert "1,442 training, 355 test images 8x8x1, 10 classes" in line
  assert [path.name for path in (directory / "digits").iterdir()] == ["1.0.0"]


def test_the_digits_are_scikit_learn_s(directory):
  import ml_collections

  from okdph_jax import data
  from okdph_jax.data.digits import members

  options = dict(name="digits", dir=str(directory), train="train", test="test")
  options |= dict(fraction=1.0, replacement=False, validation=0)
  dataset = data.load(ml_collections.ConfigDict(dict(data=options)))
  bunch = load_digits()
  for split in ("train", "test"):
    chosen = members(bunch.target, split)
    images, labels = (getattr(getattr(dataset, split), x) for x in ("images", "labels"))
    np.testing.assert_array_equal(labels, bunch.target[chosen])
    np.testing.assert_allclose(images[..., 0] / 255 * 16, bunch.images[chosen], atol=0.04)
    assert images.max() == 255 and images.min() == 0
  both = np.concatenate([members(bunch.target, split) for split in ("train", "test")])
  assert sorted(both) == list(range(1_797))
  np.testing.assert_array_equal(
    np.bincount(dataset.test.labels), np.bincount(bunch.target) // 5
  )


def test_a_full_disk_leaves_no_half_prepared_dataset(tmp_path):
  line, _ = start(tmp_path, 20_000).communicate(timeout=200)
  assert "'digits' is not prepared" in line and "choose a data.dir with room" in line
  assert not list(tmp_path.glob("digits/*"))
  line, _ = start(tmp_path).communicate(timeout=200)  # and with room it is prepared after all
  assert "1,442 training" in line
