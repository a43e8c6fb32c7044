import hashlib
import io
import pathlib
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import limited
from okdph_jax import data
from okdph_jax.data import catalog
from okdph_jax.data.dataset import subset


def config(**options):
  defaults = dict(
    name="arrays",
    dir=None,
    train="train",
    test="test",
    fraction=1.0,
    replacement=False,
    validation=0,
    image_size=None,
  )
  return ml_collections.ConfigDict(dict(seed=0, data=defaults | options))


def refusal(**options):
  """The one line that `load` refuses with."""
  with pytest.raises(ValueError) as caught:
    data.load(config(**options))
  line = str(caught.value)
  assert "\n" not in line and len(line) < 1_000
  return line


# Arrays.


@pytest.fixture
def arrays():
  generator = np.random.default_rng(0)
  labels = np.arange(60) % 3
  return dict(
    train_images=generator.integers(0, 256, (60, 4, 5, 3), np.uint8),
    train_labels=generator.permutation(labels),
    test_images=generator.integers(0, 256, (6, 4, 5, 3), np.uint8),
    test_labels=labels[:6],
  )


@pytest.fixture
def npz(arrays, tmp_path):
  def write(**changes):
    path = tmp_path / "set.npz"
    kept = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(path, **kept)
    return str(path)

  return write


def test_arrays_come_as_they_are(npz, arrays):
  dataset = data.load(config(dir=npz(class_names=np.array(["ant", "bee", "cat"]))))
  np.testing.assert_array_equal(dataset.train.images, arrays["train_images"])
  np.testing.assert_array_equal(dataset.test.labels, arrays["test_labels"])
  assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int32
  assert dataset.class_names == ("ant", "bee", "cat") and dataset.classes == 3
  assert dataset.validation is None
  scaled = arrays["train_images"].reshape(-1, 3) / 255
  np.testing.assert_allclose(dataset.mean, scaled.mean(0), rtol=1e-12)
  np.testing.assert_allclose(dataset.std, scaled.std(0), rtol=1e-12)
  assert "measured on the training split" in dataset.summary
  assert "60 training, 6 test images 4x5x3, 3 classes" in dataset.summary


def test_grey_arrays_get_their_channel(npz, arrays):
  grey = {k: arrays[k][..., 0] for k in ("train_images", "test_images")}
  dataset = data.load(config(dir=npz(**grey)))
  assert dataset.train.images.shape == (60, 4, 5, 1) and len(dataset.mean) == 1


def test_a_constant_channel_has_no_zero_std(npz, arrays):
  dataset = data.load(config(dir=npz(train_images=np.full_like(arrays["train_images"], 9))))
  assert min(dataset.std) > 0


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(test_labels=None), ["lacks test_labels"]),
    (dict(train_images=np.zeros((60, 4, 5, 3), np.float32)), ["float32", "uint8"]),
    (dict(train_labels=np.zeros(59, int)), ["train_labels", "60 images"]),
    (dict(train_labels=np.zeros(60, int)), ["one class"]),
    (dict(test_labels=np.arange(6)), ["test labels range from 0 to 5", "3 classes"]),
    (dict(test_images=np.zeros((6, 5, 5, 3), np.uint8)), ["(4, 5, 3)", "(5, 5, 3)"]),
    (dict(train_images=np.zeros((60, 4, 5, 4), np.uint8)), ["4 channels"]),
  ],
)
def test_wrong_arrays_are_refused(npz, changes, words):
  line = refusal(dir=npz(**changes))
  assert all(word in line for word in words), line


def test_what_is_no_npz_is_refused(tmp_path):
  (tmp_path / "x.npz").write_bytes(b"not an archive")
  assert "not a readable .npz" in refusal(dir=str(tmp_path / "x.npz"))
  assert "not a readable .npz" in refusal(dir=str(tmp_path))
  assert "no such file" in refusal(dir=str(tmp_path / "y.npz"))
  assert "needs data.dir" in refusal()


def test_labels_from_one_are_not_a_class_too_many(npz, arrays):
  shifted = {k: arrays[k] + 1 for k in ("train_labels", "test_labels")}
  line = refusal(dir=npz(**shifted))
  assert "training labels range from 1 to 3 without 0" in line and "class_names" in line
  names = np.array(["none", "ant", "bee", "cat"])  # the user says that there is a class 0
  assert data.load(config(dir=npz(class_names=names, **shifted))).classes == 4
  assert "3 classes need labels from 0 to 2" in refusal(
    dir=npz(class_names=names[1:], **shifted)
  )
  assert "train_labels has 8589934592" in refusal(
    dir=npz(train_labels=arrays["train_labels"] << 32)
  )


def test_arrays_of_a_validation_split_validate(npz, arrays, capsys):
  held = dict(validation_images=arrays["test_images"], validation_labels=arrays["test_labels"])
  dataset = data.load(config(dir=npz(**held)))
  np.testing.assert_array_equal(dataset.validation.images, arrays["test_images"])
  assert len(dataset.train) == 60 and "6 validation" in dataset.summary
  assert "has its own validation split" in refusal(dir=npz(**held), validation=5)
  assert "lacks validation_labels" in refusal(
    dir=npz(validation_images=held["validation_images"])
  )
  capsys.readouterr()
  data.load(config(dir=npz(extra_images=np.zeros(3))))
  assert "ignored extra_images" in capsys.readouterr().out


def test_a_test_set_is_drawn_where_there_is_none(npz, arrays):
  alone = npz(test_images=None, test_labels=None)
  assert "data.test='20%' draws a test set" in refusal(dir=alone)
  dataset = data.load(config(dir=alone, test="20%", validation=8))
  assert np.bincount(dataset.test.labels).tolist() == [4, 4, 4]
  assert [len(x) for x in (dataset.train, dataset.validation)] == [40, 8]
  parts = [x.images.tobytes() for x in (dataset.train, dataset.validation, dataset.test)]
  assert sum(map(len, parts)) == arrays["train_images"].nbytes
  assert "TFDS's split syntax" in refusal(name="cifar10", test="20%")
  assert "test on other images" in refusal(dir=npz(), test="train")


def test_arrays_are_brought_to_the_size_that_is_asked_for(npz):
  assert data.load(config(dir=npz(), image_size=4)).image_shape == (4, 4, 3)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_fractions_outside_are_refused(npz, fraction):
  assert f"data.fraction={fraction}" in refusal(dir=npz(), fraction=fraction)


def test_validation_must_be_a_number_of_images_that_leaves_some(npz):
  assert "leaves no image" in refusal(dir=npz(), validation=60)
  assert "number of images" in refusal(dir=npz(), validation=-1)
  assert "number of images" in refusal(dir=npz(), validation=0.1)


# What is trained on.


def test_validation_is_held_out_first_and_is_the_same_for_every_seed(npz, arrays):
  dataset = data.load(config(dir=npz(), validation=12, fraction=0.5, replacement=True))
  held = {image.tobytes() for image in dataset.validation.images}
  trained = {image.tobytes() for image in dataset.train.images}
  assert len(held) == 12 and not held & trained
  assert held | trained <= {image.tobytes() for image in arrays["train_images"]}
  other = config(dir=npz(), validation=12)
  other.seed = 1
  np.testing.assert_array_equal(dataset.validation.images, data.load(other).validation.images)


def test_another_data_seed_is_another_draw_for_every_seed(npz):
  options = dict(dir=npz(), validation=12, fraction=0.5, replacement=True)
  first, same, other = (
    data.load(config(**options, **s)) for s in ({}, {"seed": 42}, {"seed": 7})
  )
  assert first.fingerprint() == same.fingerprint()
  for split in ("train", "validation"):
    assert first.fingerprint()[split] != other.fingerprint()[split]
  assert first.fingerprint()["test"] == other.fingerprint()["test"]
  trained, held = (
    {image.tobytes() for image in x.images} for x in (other.train, other.validation)
  )
  assert not trained & held
  again = config(**options, seed=7)
  again.seed = 1
  assert data.load(again).fingerprint() == other.fingerprint()


def test_a_folder_can_be_normalised_as_a_dataset_that_is_known(npz, arrays):
  dataset = data.load(config(dir=npz(), normalise_as="tiny_imagenet"))
  mean, std = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)  # mdistiller's
  assert (dataset.mean, dataset.std) == (mean, std)
  assert "as known for tiny_imagenet" in dataset.summary
  grey = {name: arrays[name][..., :1] for name in ("train_images", "test_images")}
  line = refusal(dir=npz(**grey), normalise_as="cifar10")
  assert "data.normalise_as='cifar10' has 3 channels" in line and "have 1" in line
  line = refusal(dir=npz(), normalise_as="tinyimagenet")
  assert "'tinyimagenet' is not one of cifar10" in line


def test_subsets_take_a_part_of_each_class():
  labels = np.repeat([2, 0, 1], [40, 30, 25])
  chosen = subset(labels, 3, 0.2, replacement=False)
  np.testing.assert_array_equal(np.bincount(labels[chosen]), [6, 5, 8])
  assert len(np.unique(chosen)) == 19
  np.testing.assert_array_equal(subset(labels, 3, 1.0, True), np.arange(95))
  with pytest.raises(ValueError, match="no image of class 2, which has 40; at least 0.025"):
    subset(labels, 3, 0.01, replacement=False)


def test_a_draw_as_large_as_the_set_is_still_a_draw(npz, arrays):
  dataset = data.load(config(dir=npz(), fraction=0.99, replacement=True))
  assert len(dataset.train.images) == 60 > dataset.distinct
  chosen = subset(arrays["train_labels"], 3, 0.99, replacement=True)
  np.testing.assert_array_equal(dataset.train.images, arrays["train_images"][chosen])


def test_the_release_draws_with_replacement_class_by_class():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
  np.random.seed(42)  # the long way: the global generator, as in the release's notebook
  expected = []
  for label in dict.fromkeys(labels.tolist()):
    members = [i for i in range(1_000) if labels[i] == label]
    expected.extend(np.random.choice(members, round(100 * 0.1), replace=True))
  np.testing.assert_array_equal(subset(labels, 10, 0.1, replacement=True), expected)


@pytest.mark.parametrize(
  "name, fraction, total, distinct, digest",
  [
    ("cifar10", 0.1, 5_000, 4_739, "df4e97fdc76a4dd0"),
    ("cifar10", 0.01, 500, 499, "50d0aedf4b95c427"),
    ("cifar100", 0.1, 5_000, 4_766, "e1293a91169ef086"),
    ("cifar100", 0.01, 500, 498, "42ef1311ca28dbae"),
  ],
)
def test_the_paper_s_subsets_by_position(name, fraction, total, distinct, digest):
  """Positions within each class depend on no label; the digests are of the release's ids."""
  classes = {"cifar10": 10, "cifar100": 100}[name]
  labels = np.arange(50_000) % classes
  part = limited.get_config(f"dml,resnet32,{name},{fraction}").data
  chosen = subset(labels, classes, part.fraction, part.replacement, part.seed)
  assert len(chosen) == total and len(np.unique(chosen)) == distinct
  positions = (chosen // classes).astype("<u2").tobytes()
  assert hashlib.sha256(positions).hexdigest()[:16] == digest


def test_cifar10_by_name():
  if not (pathlib.Path.home() / "tensorflow_datasets/cifar10/3.0.2/dataset_info.json").exists():
    pytest.skip("CIFAR-10 is not prepared in ~/tensorflow_datasets")
  dataset = data.load(config(name="cifar10", train="train[:20%]", test="test[:100]"))
  assert (
    dataset.train.images.shape == (10_000, 32, 32, 3)
    and dataset.train.images.flags.c_contiguous
  )
  assert dataset.class_names[:2] == ("airplane", "automobile") and dataset.classes == 10
  np.testing.assert_allclose(dataset.mean, (0.4914, 0.4822, 0.4465))
  np.testing.assert_allclose(
    dataset.train.images.mean((0, 1, 2)) / 255, dataset.mean, atol=5e-3
  )
  found = catalog.records(catalog.find("cifar10"), "train[:20%]", "image", "label", "id")
  assert found.names == sorted(found.names)  # the canonical order
  first = np.asarray(Image.open(io.BytesIO(found.images[0])))
  np.testing.assert_array_equal(dataset.train.images[0], first)
  assert "tst" in refusal(name="cifar10", test="tst")


# Digests of the images that the index files of the paper's release name, in their order.
DRAWN = {
  "cifar10": {0.1: "be680a739d89c4a9", 0.01: "7adff11deb2e73a3"},
  "cifar100": {0.1: "82142d7d5dce26d8", 0.01: "6c136567d4c9feb6"},
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_images_that_the_paper_s_release_drew(name, monkeypatch):
  if not (pathlib.Path.home() / f"tensorflow_datasets/{name}/3.0.2/dataset_info.json").exists():
    pytest.skip(f"{name} is not prepared in ~/tensorflow_datasets")
  source = catalog.read(config(name=name, test="test[:100]").data)
  monkeypatch.setattr(catalog, "read", lambda _: source)  # which takes seconds
  for fraction, digest in DRAWN[name].items():
    dataset = data.load(limited.get_config(f"dml,resnet32,{name},{fraction}"))
    assert dataset.train.fingerprint()["digest"] == digest


def test_names_that_do_not_exist_or_are_no_images():
  assert "did you mean 'cifar10'" in refusal(name="cifra10")
  assert "not for image classification" in refusal(name="glue/cola")


def test_not_prepared_and_no_network(tmp_path, monkeypatch):
  monkeypatch.setattr(catalog, "_reach", no_network)
  line = refusal(name="mnist", dir=str(tmp_path))
  for word in (
    "'mnist'",
    str(tmp_path),
    "no answer",
    "tfds.load('mnist'",
    "data.dir",
    "digits",
  ):
    assert word in line, line
  assert not list(tmp_path.rglob("dataset_info.json"))


def no_network(builder):
  raise ConnectionError("no answer from the network")


def test_nothing_needs_tensorflow_until_a_dataset_does(npz):
  code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import ml_collections
from okdph_jax import data
config = ml_collections.ConfigDict({config(dir=npz()).to_dict()!r})
print(data.load(config).summary)
config.data.name = "cifar10"
try:
  data.load(config)
except ValueError as error:
  print(error)
"""
  lines = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  first, second = lines.stdout.splitlines()
  assert "60 training" in first and "data.name='digits', 'folder' or 'arrays'" in second
