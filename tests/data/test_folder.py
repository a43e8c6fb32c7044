import ml_collections
import numpy as np
import pytest
from PIL import Image

from okdph_jax import data


def load(root, **options):
  defaults = dict(name="folder", dir=str(root), train="train", test="test", fraction=1.0)
  defaults |= dict(replacement=False, validation=0, image_size=None)
  return data.load(ml_collections.ConfigDict(dict(data=defaults | options)))


def refusal(root, **options):
  """The one line that `load` refuses with."""
  with pytest.raises(ValueError) as caught:
    load(root, **options)
  line = str(caught.value)
  assert "\n" not in line and len(line) < 1_000
  return line


def picture(path, size=(6, 6), colour=(200, 0, 0), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
  for split, count in (("train", 3), ("test", 1)):
    for i in range(count):
      picture(tmp_path / split / "red" / f"{i}.png")
      picture(tmp_path / split / "blue" / f"{i}.png", colour=(0, 0, 100 + i))
  return tmp_path


def test_a_folder_in_the_order_of_its_paths(folder):
  (folder / "train" / ".hidden").mkdir()
  dataset = load(folder)
  assert dataset.class_names == ("blue", "red")
  np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(dataset.train.images[:3, 0, 0, 2], [100, 101, 102])
  np.testing.assert_array_equal(dataset.test.images[1, 0, 0], [200, 0, 0])


def test_sizes_are_brought_to_one(folder):
  picture(folder / "train" / "red" / "wide.png", size=(16, 8))
  line = refusal(folder)
  assert "wide.png is 16x8" in line and "data.image_size" in line
  dataset = load(folder, image_size=4)
  assert dataset.train.images.shape == (7, 4, 4, 3)
  np.testing.assert_array_equal(dataset.train.images[-1, :, :, 0], np.full((4, 4), 200))


def test_grey_pictures_stay_grey_and_become_colour_among_coloured_ones(tmp_path):
  for split in ("train", "test"):
    picture(tmp_path / split / "a" / "0.png", colour=10, mode="L")
    picture(tmp_path / split / "b" / "0.png", colour=20, mode="L")
  assert load(tmp_path).train.images.shape == (2, 6, 6, 1)
  picture(tmp_path / "train" / "b" / "1.png")
  dataset = load(tmp_path)
  assert dataset.train.images.shape == (3, 6, 6, 3) and dataset.test.images.shape == (
    2,
    6,
    6,
    3,
  )


def test_a_corrupt_file_is_named(folder):
  path = folder / "train" / "red" / "1.png"
  path.write_bytes(path.read_bytes()[:40])
  assert str(path) in refusal(folder)


def test_a_corrupt_file_is_left_out_where_the_config_says_so(folder, capsys):
  path = folder / "train" / "blue" / "1.png"
  path.write_bytes(path.read_bytes()[:40])
  dataset = load(folder, corrupt="skip")
  np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 1, 1])
  np.testing.assert_array_equal(dataset.train.images[:3, 0, 0, 2], [100, 102, 0])
  told = capsys.readouterr().out
  assert f"skipped: {path}" in told and "corrupt images left out: 1 of 6" in told
  for other in folder.glob("*/*/*.png"):
    other.write_bytes(b"")
  assert "all 6 images are corrupt" in refusal(folder, corrupt="skip")


def test_folders_that_are_no_dataset(folder, tmp_path_factory):
  (folder / "train" / "green").mkdir()
  assert "green has no images" in refusal(folder)
  (folder / "train" / "green").rmdir()
  picture(folder / "test" / "green" / "0.png")
  assert "train has no class of that name" in refusal(folder)
  one = tmp_path_factory.mktemp("one")
  picture(one / "train" / "only" / "0.png")
  assert "test is not a folder" in refusal(one)
  picture(one / "test" / "only" / "0.png")
  assert "one class (only)" in refusal(one)


def test_one_colour_file_anywhere_makes_all_colour(tmp_path):
  for i in range(250):
    picture(tmp_path / "train" / "ab"[i % 2] / f"{i:03d}.png", colour=9, mode="L")
  picture(tmp_path / "test" / "a" / "0.png", colour=9, mode="L")
  assert load(tmp_path).image_shape == (6, 6, 1)
  picture(tmp_path / "train" / "a" / "003.png", colour=(200, 0, 0))
  assert load(tmp_path).image_shape == (6, 6, 3)
  (tmp_path / "train" / "a" / "003.png").unlink()
  picture(tmp_path / "test" / "a" / "0.png", colour=(200, 0, 0))
  assert load(tmp_path).test.images[0, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("end", ["webp", "bmp", "gif", "tif", "TIFF", "ppm"])
def test_every_format_of_pillow_is_read(folder, end, capsys):
  picture(folder / "train" / "red" / f"9.{end}")
  dataset = load(folder)
  assert len(dataset.train) == 7
  np.testing.assert_allclose(dataset.train.images[-1, 0, 0], [200, 0, 0], atol=5)
  assert "ignored" not in capsys.readouterr().out


def test_what_is_not_read_is_said(folder, capsys):
  (folder / "train" / "red" / "labels.csv").write_text("")
  (folder / "train" / "red" / "more").mkdir()
  (folder / "train" / "nowhere").symlink_to(folder / "absent")
  picture(folder / "train" / "loose.png")
  picture(folder / "train" / "red" / ".hidden.png")
  assert len(load(folder).train) == 6
  said = capsys.readouterr().out
  assert "train: ignored 4 " in said and "e.g. loose.png" in said


def test_a_validation_folder_is_the_validation_split(folder):
  picture(folder / "validation" / "red" / "0.png", colour=(7, 0, 0))
  dataset = load(folder)
  assert dataset.validation.labels.tolist() == [1] and len(dataset.train) == 6
  assert dataset.validation.images[0, 0, 0].tolist() == [7, 0, 0]
  assert "has its own validation split" in refusal(folder, validation=2)


def test_class_folders_without_a_split_get_one(tmp_path):
  for i in range(60):
    picture(tmp_path / ("red" if i % 3 else "blue") / f"{i:02d}.png", colour=(i, 0, 0))
  assert "data.train=. and data.test=20%" in refusal(tmp_path)
  dataset = load(tmp_path, train=".", test="20%")
  assert np.bincount(dataset.train.labels).tolist() == [16, 32]
  assert np.bincount(dataset.test.labels).tolist() == [4, 8]
  parts = [set(x.images[:, 0, 0, 0].tolist()) for x in (dataset.train, dataset.test)]
  assert parts[0] | parts[1] == set(range(60)) and not parts[0] & parts[1]
  streamed = load(tmp_path, train=".", test="20%", image_size=6, memory_limit=1)
  assert streamed.test.streamed
  np.testing.assert_array_equal(streamed.test.first(99), dataset.test.first(99))
  assert "0% and 100%" in refusal(tmp_path, train=".", test="120%")
  assert "leaves no image of class 0, which has 20" in refusal(tmp_path, train=".", test="99%")
