"""The step's own promises: donated, traced once, a pure function of (state, batch, key)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from okdph_jax import data, views
from okdph_jax.core import Batch, Learner, Views
from okdph_jax.methods.okdph import okdph
from okdph_jax.methods.protocol import Context
from okdph_jax.runtime import host
from okdph_jax.training.step import (
  added,
  initial_state,
  keys_of,
  mean_over_parts,
  train_step,
  without_sums,
)
from tests.nets import Small, Stateless

SPECS = ("crop(1)|flip", "cutout(2)", "plain")


@pytest.fixture(scope="module", params=[Small, Stateless])
def run(request):
  """(state(), step, batches): a jitted step over two host devices, on random images."""
  mesh = host.mesh()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (22, 6, 6, 3), dtype=np.uint8)
  split = data.Split(images, rng.integers(0, 3, 22))
  batch = split.batches(seed=1, batch_size=8, mesh=mesh)
  method = okdph(Context(request.param(3), 3, 3, 4), fuse_every="2 steps")
  augment = views.make(SPECS, (0.5,) * 3, (0.25,) * 3)
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=5e-4)
  everywhere = jax.NamedSharding(mesh, jax.P())
  key = jax.device_put(jax.random.key(3), everywhere)
  parts = method, tx, augment
  start = jax.jit(lambda key: initial_state(*parts, batch(0), key), out_shardings=everywhere)
  step = jax.jit(
    functools.partial(train_step, *parts), donate_argnums=0, out_shardings=everywhere
  )
  return functools.partial(start, key), functools.partial(step, key=key), batch, step


def walk(run, steps):
  start, step, batch, _ = run
  state = start()
  for i in range(steps):
    state, metrics = step(state, batch(i))
  return state, metrics


def test_the_same_seed_gives_the_same_run_with_one_trace_per_batch_shape(run):
  first, _ = walk(run, 6)
  again, _ = walk(run, 6)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert run[3]._cache_size() == 2  # 8 images and, at the end of an epoch, 6


def test_the_state_keeps_its_shape_and_sums_what_it_is_told(run):
  start, step, batch, _ = run
  before = start()
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), before)
  losses = []
  state = before
  for i in range(3):
    state, metrics = step(state, batch(i))
    losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    np.testing.assert_allclose(metrics["loss"], metrics["task"] + metrics["distill"], rtol=1e-6)
  assert {m.dtype for m in metrics.values()} == {np.dtype(np.float32)}
  assert int(state.step) == 3 and float(state.sums["steps"]) == 3
  assert added({}, {"loss": jnp.float32(2)}) == {"loss": 2}
  np.testing.assert_allclose(state.sums["loss"], sum(losses), rtol=1e-6)
  assert jax.tree.leaves(before.learner.params)[0].is_deleted()  # donated


def test_one_device_computes_what_two_do(run):
  """Batch statistics are those of the whole batch: a sharded step is the same step."""
  start, step, batch, jitted = run
  plain = jax.jit(functools.partial(jitted.__wrapped__, key=jax.random.key(3)))
  two, one = start(), jax.device_get(start())
  for i in range(2):
    two, _ = step(two, batch(i))
    one, _ = plain(one, jax.device_get(batch(i)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    jax.device_get(two.learner.params),
    jax.device_get(one.learner.params),
  )


def test_shapes_are_enough_to_start(run):
  method = okdph(Context(Small(3), 3, 3, 4))
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=0.0)
  augment = views.make(SPECS, (0.5,) * 3, (0.25,) * 3)
  image = np.zeros((4, 6, 6, 3), np.uint8)
  shapes = Batch(
    jax.ShapeDtypeStruct(image.shape, np.uint8), jax.ShapeDtypeStruct((4,), np.int32)
  )
  a = initial_state(method, tx, augment, shapes, jax.random.key(0))
  b = initial_state(method, tx, augment, Batch(image, jnp.zeros(4, int)), jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_draw_is_a_function_of_the_key_and_the_step():
  """The start has the key of a step that no run comes to."""
  key = jax.random.key(7)
  np.testing.assert_array_equal(
    jax.random.key_data(keys_of(key, 5)),
    jax.random.key_data(jax.random.split(jax.random.fold_in(key, 5), 3)),
  )
  method = okdph(Context(Stateless(3), 3, 3, 4))
  method = method._replace(init=lambda key, views: Learner({}, {}, {"key": key}))
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=0.0)

  def augment(key, image):
    return image[None] / 255.0

  batch = Batch(np.zeros((2, 6, 6, 3), np.uint8), np.zeros(2, np.int32))
  begun = without_sums(method, tx, augment, batch, key).learner.memory["key"]
  np.testing.assert_array_equal(
    jax.random.key_data(begun), jax.random.key_data(jax.random.fold_in(key, 2**31 - 1))
  )


@pytest.mark.parametrize(
  "parts", [[[0, 4], [1, 5], [2, 6], [3, 7]], [[0, 1, 2], [3, 5], [4, 6]]], ids=len
)
def test_parts_have_keys_of_their_own_and_whole_numbers_do_not_move(parts):
  key, count, size = jax.random.key(5), len(parts), sum(map(len, parts))
  label = np.arange(size, dtype=np.int32)
  views = Views(jnp.asarray(label, jnp.float32).reshape(1, size, 1, 1, 1), label)
  learner = Learner({}, {"mean": jnp.float32(2)}, {"count": jnp.int32(3)})

  def gradient(views, key):
    drawn = jax.random.uniform(key) * views.image.mean()
    after = learner.replace(stats={"mean": learner.stats["mean"] + drawn})
    return {"drawn": drawn}, (after, {"label": views.label.mean()})

  grads, after, metrics = mean_over_parts(count, gradient, learner, views, key)
  drawn = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(count)]
  want = sum(u * sum(part) for u, part in zip(drawn, parts, strict=True)) / size
  np.testing.assert_allclose(
    [grads["drawn"], after.stats["mean"], metrics["label"]],
    [want, 2 + want, label.mean()],
    rtol=1e-5,
  )
  assert after.memory["count"].dtype == jnp.int32 and after.memory["count"] == 3


@pytest.mark.parametrize("size, count", [(8, 4), (7, 3), (2, 4)])
def test_parts_of_a_batch_give_its_gradient_where_nothing_normalises(size, count):
  """Also where they are unequal, or some empty."""
  method = okdph(Context(Stateless(3), 3, 3, 4))
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=5e-4)
  parts = method, tx, views.make(SPECS, (0.5,) * 3, (0.25,) * 3)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (size, 6, 6, 3), dtype=np.uint8)
  batch, key = Batch(image, np.arange(size, dtype=np.int32) % 3), jax.random.key(3)
  state = initial_state(*parts, batch, key)
  whole, metrics = jax.jit(functools.partial(train_step, *parts))(state, batch, key)
  step = jax.jit(functools.partial(train_step, *parts, accumulate=count))
  ours, mine = step(state, batch, key)
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(compare, (ours.learner, mine), (whole.learner, metrics))
  assert mine["steps"] == 1
  jax.tree.map(np.testing.assert_array_equal, ours.learner.memory, whole.learner.memory)


def test_batch_normalisation_sees_a_part():
  """Every second image; the running statistics move by the mean of the parts' moments."""
  method = okdph(Context(Small(3), 3, 3, 4))
  tx = method.optimizer(0.0, momentum=0.9, weight_decay=0.0)
  parts = method, tx, views.make(("plain",) * 3, (0.5,) * 3, (0.25,) * 3)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
  batch, key = Batch(image, np.arange(8, dtype=np.int32) % 3), jax.random.key(3)
  state = initial_state(*parts, batch, key)

  def stats(batch, **options):
    step = jax.jit(functools.partial(train_step, *parts, **options))
    return step(state, batch, key)[0].learner.stats["students"]["BatchNorm_0"]

  halves = [stats(Batch(image[i::2], batch.label[i::2])) for i in range(2)]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-5)
  jax.tree.map(compare, stats(batch, accumulate=2), mean)
