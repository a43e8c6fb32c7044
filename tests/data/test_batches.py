import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from okdph_jax import data
from okdph_jax.data import batches


def test_steps_of_an_epoch():
  assert data.epoch_steps(50_000, 128) == 391
  assert data.epoch_steps(500, 128) == 4
  assert data.epoch_steps(256, 128) == 2
  for step in range(9):
    assert batches.size_at(step, 500, 128) == len(data.indices(0, step, 500, 128))


def test_every_image_once_per_epoch_and_a_short_last_batch():
  steps = data.epoch_steps(500, 128)
  epochs = [
    [data.indices(7, epoch * steps + s, 500, 128) for s in range(steps)] for epoch in range(3)
  ]
  for epoch in epochs:
    assert [len(batch) for batch in epoch] == [128, 128, 128, 116]
    assert sorted(np.concatenate(epoch)) == list(range(500))
  first, second, third = (np.concatenate(epoch) for epoch in epochs)
  assert (first != second).any() and (second != third).any()


def test_the_batch_is_a_function_of_seed_and_step():
  late = data.indices(3, 1_000, 50_000, 128)
  for step in (0, 391, 999):  # whatever was asked before
    data.indices(3, step, 50_000, 128)
  np.testing.assert_array_equal(late, data.indices(3, 1_000, 50_000, 128))
  assert (late != data.indices(4, 1_000, 50_000, 128)).any()


def test_neighbouring_seeds_and_epochs_do_not_share_orders():
  orders = [tuple(data.indices(s, e * 10, 100, 10)) for s in range(8) for e in range(8)]
  assert len(set(orders)) == 64  # (seed, epoch) is not seed + epoch


@pytest.fixture
def images():
  generator = np.random.default_rng(0)
  return generator.integers(0, 256, (10, 4, 4, 3), np.uint8), np.arange(10, dtype=np.int32)


@pytest.mark.parametrize("mesh", [False, True])
def test_batches_are_gathered_as_the_indices_say_from_one_copy(images, mesh, monkeypatch):
  copies, placed = [], batches.placed
  monkeypatch.setattr(batches, "placed", lambda *x: copies.append(x) or placed(*x))
  mesh, split = Mesh(jax.devices(), ("data",)) if mesh else None, data.Split(*images)
  for seed in (5, 6):
    batch = split.batches(seed=seed, batch_size=4, mesh=mesh)
    for step in (0, 1, 2, 5):
      chosen = data.indices(seed, step, 10, 4)
      image, label = batch(step)
      assert image.dtype == np.uint8 and label.dtype == np.int32
      np.testing.assert_array_equal(image, images[0][chosen])
      np.testing.assert_array_equal(label, chosen)
  assert len(copies) == 1


def test_a_batch_is_split_over_the_mesh_where_it_divides(images):
  mesh = jax.sharding.AbstractMesh((2,), ("data",))
  assert batches.sharding(mesh, 4).spec == jax.sharding.PartitionSpec("data")
  assert batches.sharding(mesh, 3).spec == jax.sharding.PartitionSpec()


def test_padded_covers_every_image_once_in_one_shape(images):
  parts = list(batches.padded(*images, 4))
  assert {batch.image.shape for batch, _ in parts} == {(4, 4, 4, 3)}
  seen = np.concatenate([np.asarray(batch.label)[mask] for batch, mask in parts])
  np.testing.assert_array_equal(seen, images[1])
  last, mask = parts[-1]
  np.testing.assert_array_equal(mask, [True, True, False, False])
  assert not np.asarray(last.image)[2:].any()
  assert list(batches.padded(images[0][:0], images[1][:0], 4)) == []
