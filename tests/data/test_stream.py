import pathlib
import re
import shutil
from collections import Counter

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from okdph_jax import data
from okdph_jax.data import catalog, pictures, stream
from okdph_jax.data.split import StreamedSplit

SIZE, VIEWS = 8, 2
NUMBERS = np.array([*range(0, 22, 2), *range(1, 22, 2)])  # by path: class a, then class b


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """22 training and 5 test JPEGs; the red of each tells which it is."""
  root = tmp_path_factory.mktemp("pictures")
  for split, count in (("train", 22), ("test", 5)):
    for i in range(count):
      path = root / split / "ab"[i % 2] / f"{i:02d}.jpg"
      path.parent.mkdir(parents=True, exist_ok=True)
      ramp = np.broadcast_to(np.arange(20)[:, None] * 12, (20, 14 + i % 3))
      red = np.full(ramp.shape, 10 * i)
      Image.fromarray(np.stack([red, ramp, ramp], -1).astype(np.uint8)).save(path, quality=95)
  return root


def load(root, **options):
  defaults = dict(name="folder", dir=str(root), train="train", test="test", fraction=1.0)
  defaults |= dict(replacement=False, validation=0, image_size=SIZE, memory_limit=1)
  return data.load(ml_collections.ConfigDict(dict(data=defaults | options)))


def start(dataset, seed=0, mesh=None):
  return dataset.train.batches(seed=seed, batch_size=8, views=VIEWS, mesh=mesh)


def which(batch):
  """The numbers of the images in a batch, from their red."""
  return np.rint(np.asarray(batch.image, float)[..., 0].mean((2, 3)) / 10).astype(int)


def test_a_large_folder_is_streamed_in_the_order_it_would_have_in_memory(root):
  dataset = load(root)
  assert dataset.train.streamed and "streamed" in dataset.summary
  assert dataset.train.images.shape == (22, SIZE, SIZE, 3)
  assert not load(root, memory_limit=2**30).train.streamed
  batch = start(dataset)
  for step in range(7):  # two epochs and a bit: 8, 8 and 6 images
    image, label = batch(step)
    chosen = data.indices(0, step, 22, 8)
    assert image.shape == (VIEWS, len(chosen), SIZE, SIZE, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(which(batch(step)), [NUMBERS[chosen]] * VIEWS)
    np.testing.assert_array_equal(label, NUMBERS[chosen] % 2)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_resuming_gives_the_batches_of_an_uninterrupted_run(root, step):
  whole, resumed = start(load(root)), start(load(root))
  for now in range(step):
    whole(now)
  for now in (step, step + 1):
    np.testing.assert_array_equal(whole(now).image, resumed(now).image)
    np.testing.assert_array_equal(whole(now).label, resumed(now).label)
  np.testing.assert_array_equal(whole(0).image, start(load(root))(0).image)  # and back again


def test_crops_differ_between_views_steps_and_seeds(root):
  dataset = load(root)
  first, second = np.asarray(start(dataset)(0).image)
  assert (first != second).any(axis=(1, 2, 3)).all()
  crops = {}  # of one image, wherever it comes in an epoch
  for seed in (0, 1):
    batch = start(dataset, seed)
    for step in range(6):
      for place in np.flatnonzero(data.indices(seed, step, 22, 8) == 5):
        crops[seed, step, place] = np.asarray(batch(step).image)[0, place].tobytes()
  assert len(crops) == len(set(crops.values())) == 4  # two seeds, two epochs


def test_each_image_is_read_and_decoded_once_for_all_views(root, monkeypatch):
  dataset, decoded, real = load(root), [], pictures.decode
  monkeypatch.setattr(stream, "decode", lambda name, *x: decoded.append(name) or real(name, *x))
  batch = start(dataset)
  batch(3)  # resuming decodes nothing of what comes before
  batch(4), batch(5)

  def due(*steps):  # how often each image is in the batches of these steps
    return Counter(i for step in steps for i in NUMBERS[data.indices(0, step, 22, 8)])

  got = Counter(int(pathlib.Path(name).stem) for name in list(decoded))
  assert due(3, 4, 5) <= got <= due(*range(3, 6 + stream.AHEAD))  # threads are ahead by some


def test_buffers_are_bounded(root, monkeypatch):
  dataset, taken, real = load(root), [], stream.Files.batches

  def counted(*arguments, **options):
    for entries in real(*arguments, **options):
      taken.append(len(entries))
      yield entries

  monkeypatch.setattr(stream.Files, "batches", counted)
  batch = start(dataset)
  for step in range(6):
    batch(step)
    assert len(taken) == step + 1 + stream.AHEAD


def test_evaluation_sees_every_image_once_and_its_centre(root):
  dataset = load(root)
  parts = list(dataset.test.padded(3))
  assert [mask.tolist() for _, mask in parts] == [[True] * 3, [True, True, False]]
  images = np.concatenate([np.asarray(batch.image)[mask] for batch, mask in parts])
  labels = np.concatenate([np.asarray(batch.label)[mask] for batch, mask in parts])
  np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1])
  with Image.open(root / "test" / "b" / "03.jpg") as image:
    np.testing.assert_array_equal(images[4], pictures.evaluation_crop(image, SIZE))


def test_validation_and_subsets_of_a_stream(root):
  dataset = load(root, validation=6, fraction=0.5, replacement=True)
  assert len(dataset.validation.images) == 6 and len(dataset.train.images) == 8
  held = {
    p.name
    for p in np.array(dataset.validation.images.store.paths)[dataset.validation.images.chosen]
  }
  trained = {
    p.name for p in np.array(dataset.train.images.store.paths)[dataset.train.images.chosen]
  }
  assert len(held) == 6 and not held & trained
  assert dataset.normalisation == "measured on 22 training images"


def test_batches_are_split_over_a_mesh(root):
  mesh = Mesh(jax.devices()[:1], ("data",))
  batch = start(load(root), mesh=mesh)(0)
  assert batch.image.sharding.spec == jax.sharding.PartitionSpec(None, "data")
  np.testing.assert_array_equal(batch.image, start(load(root))(0).image)


def odd(size):
  return np.arange(1, size, 2)


@pytest.mark.parametrize("kind", ["streamed", "corrupt", "memory"])
def test_a_part_of_every_batch_is_that_of_the_whole_batch(root, kind, request):
  if kind == "corrupt":
    request.getfixturevalue("corrupt")
  memory_limit = 2**30 if kind == "memory" else 1
  options = dict(seed=0, batch_size=8, views=VIEWS)
  train = load(root, memory_limit=memory_limit, corrupt="skip").train
  whole, part = train.batches(**options), train.batches(**options, part=odd)
  for step in range(3):
    image, label = part(step)
    np.testing.assert_array_equal(image, np.asarray(whole(step).image)[..., 1::2, :, :, :])
    np.testing.assert_array_equal(label, whole(step).label[1::2])


@pytest.fixture
def corrupt(root):
  path = root / "train" / "b" / "07.jpg"
  whole = path.read_bytes()
  path.write_bytes(whole[:300])
  yield path
  path.write_bytes(whole)


def run_epoch(dataset):
  batch = start(dataset)
  return [which(batch(step))[0] for step in range(3)]


def test_a_corrupt_file_is_named_and_stops(root, corrupt):
  with pytest.raises(ValueError, match=f"{corrupt} is not a readable image") as caught:
    run_epoch(load(root))
  assert "\n" not in str(caught.value)


def test_a_corrupt_file_is_skipped_and_counted_where_the_config_says_so(root, corrupt, capsys):
  dataset = load(root, corrupt="skip")
  epoch = run_epoch(dataset)
  assert [len(x) for x in epoch] == [8, 8, 6]
  seen = np.concatenate(epoch)
  assert set(seen) == set(range(22)) - {7} and len(dataset.train.images.skipped) == 1
  run_epoch(dataset)  # said once
  assert capsys.readouterr().out.count("skipped (1 so far): ") == 1
  with pytest.raises(ValueError, match="data.corrupt"):
    load(root, corrupt="ignore")


def test_a_corrupt_file_alone_in_a_short_batch_is_replaced_from_the_whole_split(root, corrupt):
  train = load(root, corrupt="skip").train
  batch = train.batches(seed=0, batch_size=7, views=VIEWS)  # 22 images: 7, 7, 7 and 1
  alone = next(
    step for step in range(3, 400, 4) if NUMBERS[data.indices(0, step, 22, 7)[0]] == 7
  )
  np.testing.assert_array_equal(which(batch(alone)), [[0]] * VIEWS)  # the first of the split
  seen = train.examples(4, VIEWS).training  # what `okdph views` draws
  assert seen.shape == (VIEWS, 4, SIZE, SIZE, 3)


def test_a_split_of_corrupt_files_alone_is_refused_before_the_run(root, tmp_path):
  shutil.copytree(root, copy := tmp_path / "copy")
  for file in (copy / "test").rglob("*.jpg"):
    file.write_bytes(b"no picture")
  first = re.escape(str(copy / "test" / "a" / "00.jpg"))
  for options in ({}, {"memory_limit": 2**30}):  # streamed, and in memory
    with pytest.raises(ValueError, match=f"all 5 images are corrupt, .* {first}") as refused:
      load(copy, corrupt="skip", **options)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
  """A TFDS dataset of 60 images, each of one colour, in 6 shards."""
  tfds = catalog.tensorflow_datasets()

  class Colours(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      image, label = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({"image": image, "label": label(num_classes=3)}),
        supervised_keys=("image", "label"),
      )

    def _split_generators(self, manager):
      return {"train": self._generate_examples(60)}

    def _generate_examples(self, count):
      for i in range(count):
        yield i, {"image": np.full((9, 8 + i % 2, 3), 4 * i, np.uint8), "label": i % 3}

  builder = Colours(data_dir=tmp_path_factory.mktemp("tfds"))
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=6))
  return builder


def shards(colours, split="train"):
  store = stream.Shards(colours, split, "image", "label")
  count = colours.info.splits[split].num_examples
  return stream.Pictures(store, np.arange(count), SIZE, 3)


def order(pictures, seed, steps):
  batch = stream.stream(pictures, seed=seed, batch_size=16, views=1)
  return [np.asarray(batch(step).image)[0, :, 0, 0, 0].tolist() for step in steps]


def test_records_come_once_per_epoch_in_an_order_of_seed_and_epoch(colours):
  assert len(colours.info.splits["train"].file_instructions) == 6
  pictures = shards(colours)
  steps = order(pictures, 0, range(8))
  assert [len(x) for x in steps] == [16, 16, 16, 12] * 2
  first, second = sum(steps[:4], []), sum(steps[4:], [])
  assert sorted(first) == sorted(second) and len(set(first)) == 60 and first != second
  assert order(pictures, 1, range(4)) != steps[:4]
  for step in (2, 5):  # resumed in the middle of an epoch
    assert order(pictures, 0, range(step, 8)) == steps[step:]


def test_records_are_held_out_by_their_place_in_the_split(colours):
  pictures = shards(colours)
  batches = list(stream.padded_stream(pictures, 60))
  everything = np.asarray(batches[0][0].image)[:, 0, 0, 0]
  kept, held = np.arange(60) % 4 != 0, np.arange(60) % 4 == 0
  ((batch, mask),) = stream.padded_stream(pictures[held], 20)
  np.testing.assert_array_equal(np.asarray(batch.image)[mask, 0, 0, 0], everything[held])
  assert set(sum(order(pictures[kept], 0, range(3)), [])) == set(everything[kept])
  part = shards(colours, "train[10:30]")  # TFDS's own part, across shards
  ((batch, _),) = stream.padded_stream(part, 20)
  np.testing.assert_array_equal(np.asarray(batch.image)[:, 0, 0, 0], everything[10:30])


def test_records_have_names_and_their_labels(colours):
  for split, skip in (("train", 0), ("train[13:]", 13)):
    found = [
      x
      for entries in shards(colours, split).store.batches(np.arange(60 - skip), 7)
      for x in entries
    ]
    memory = catalog.records(colours, split, "image", "label")
    assert [entry.encoded for entry in found] == list(memory.images)
    assert [entry.label for entry in found] == list(memory.labels)
  file = colours.info.splits["train"].file_instructions[1].filename
  size = colours.info.splits["train"].file_instructions[0].take
  assert (
    next(shards(colours).store.batches(np.arange(60), 60))[size].name == f"record 0 of {file}"
  )


def test_a_streamed_tfds_dataset_by_name(colours, monkeypatch):
  monkeypatch.setattr(catalog, "find", lambda *_: colours)
  options = dict(name="colours", train="train[:50]", test="train[50:]")
  dataset = load(None, validation=5, **options)
  assert dataset.train.images.shape == (45, SIZE, SIZE, 3) and len(dataset.test.images) == 10
  assert (dataset.train.labels == stream.UNKNOWN).all() and dataset.classes == 3
  labels = [
    int(x) for batch, mask in dataset.test.padded(4) for x in np.asarray(batch.label)[mask]
  ]
  np.testing.assert_array_equal(
    labels, catalog.records(colours, "train[50:]", "image", "label").labels
  )
  with pytest.raises(ValueError, match="use TFDS's split syntax"):
    load(None, fraction=0.5, **options)
  with pytest.raises(ValueError, match="set data.image_size"):
    load(None, image_size=None, **options)


def test_a_broken_record_file_is_one_line(colours):
  file = colours.info.splits["train"].file_instructions[3].filename
  with open(file, "r+b") as opened:
    whole = opened.read()
    opened.seek(40)
    opened.write(b"broken")
  with pytest.raises(ValueError, match="cannot read the records") as caught:
    order(shards(colours), 0, range(4))
  with open(file, "wb") as opened:
    opened.write(whole)
  assert "\n" not in str(caught.value) and "prepare the dataset again" in str(caught.value)


def test_records_have_a_fingerprint(colours):
  def fingerprint(split):
    labels = np.full(colours.info.splits[split].num_examples, stream.UNKNOWN)
    return StreamedSplit(shards(colours, split), labels).fingerprint()

  assert fingerprint("train") == fingerprint("train")
  assert len({fingerprint(x)["digest"] for x in ("train", "train[:30]", "train[30:]")}) == 3
