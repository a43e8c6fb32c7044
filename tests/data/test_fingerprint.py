import ml_collections
import numpy as np
import pytest

from okdph_jax import data
from tests.data.test_folder import picture


def load(name, dir, **options):
  defaults = dict(name=name, dir=str(dir), train="train", test="test", fraction=1.0)
  defaults |= dict(replacement=False, validation=0, image_size=None)
  return data.load(ml_collections.ConfigDict(dict(data=defaults | options)))


def changed(old, new):
  return [name for name in old | new if old.get(name) != new.get(name)]


@pytest.fixture
def arrays(tmp_path):
  generator = np.random.default_rng(0)
  whole = dict(
    train_images=generator.integers(0, 256, (12, 4, 5, 3), np.uint8),
    train_labels=np.arange(12) % 3,
    test_images=generator.integers(0, 256, (6, 4, 5, 3), np.uint8),
    test_labels=np.arange(6) % 3,
  )

  def fingerprint(**changes):
    np.savez(tmp_path / "set.npz", **(whole | changes))
    return load("arrays", tmp_path / "set.npz").fingerprint()

  return whole, fingerprint


def test_arrays_differ_in_the_split_that_was_changed(arrays):
  whole, fingerprint = arrays
  first = fingerprint()
  assert first == fingerprint() and first["train"]["images"] == 12
  twice = {k: np.concatenate([whole[k]] * 2) for k in ("train_images", "train_labels")}
  for changes, split in (
    (dict(train_labels=whole["train_labels"][::-1]), "train"),
    (dict(train_images=whole["train_images"][::-1]), "train"),
    (dict(test_images=whole["test_images"] ^ (np.arange(6) == 5)[:, None, None, None]), "test"),
    (twice, "train"),
    (
      dict(validation_images=whole["test_images"], validation_labels=np.arange(6) % 3),
      "validation",
    ),
  ):
    assert changed(first, fingerprint(**changes)) == [split], changes.keys()


@pytest.mark.parametrize("options", [{}, dict(image_size=6, memory_limit=1)])
def test_files_differ_and_may_move(tmp_path, options):
  root = tmp_path / "here"
  for split, count in (("train", 6), ("test", 2)):
    for i in range(count):
      picture(root / split / "ab"[i % 2] / f"{i}.png", colour=(i, 0, 0))
  first = load("folder", root, **options).fingerprint()
  root = root.rename(tmp_path / "there")
  assert load("folder", root, **options).fingerprint() == first
  (root / "train" / "a" / "0.png").rename(root / "train" / "b" / "0.png")
  assert changed(first, load("folder", root, **options).fingerprint()) == ["train"]
  (root / "train" / "b" / "0.png").rename(root / "train" / "a" / "0.png")
  picture(root / "test" / "a" / "0.png", size=(6, 6), colour=(99, 98, 97))
  (root / "test" / "a" / "0.png").open("ab").write(b" ")
  assert "test" in changed(first, load("folder", root, **options).fingerprint())
