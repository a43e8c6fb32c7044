"""A stack runs as its networks do one by one, with stock layers and their values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from okdph_jax.nn import students

N, B = 3, 4


class Net(nn.Module):
  """A user's network: stock layers, smooth, so that orders of summation do not show."""

  classes: int = 5
  dropout: float = 0.0
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(8, (3, 3), use_bias=False)(x)
    x = nn.softplus(nn.BatchNorm(not train, momentum=self.momentum)(x))
    x = nn.Conv(8, (3, 3), strides=2, feature_group_count=8)(x)  # depthwise
    x = nn.softplus(nn.BatchNorm(momentum=self.momentum)(x, use_running_average=not train))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.classes)(x.mean((1, 2)))


class Stateless(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(5)(nn.Conv(4, (3, 3))(x).mean((1, 2)))


def setting(net, n=N):
  image = jax.random.normal(jax.random.key(1), (n, B, 6, 6, 3))
  return students.stack(net, jax.random.split(jax.random.key(0), n), image[0]), image


def stock(net, variables, x):
  """One network, run by Flax alone."""
  logits, new = net.apply(variables, x, True, mutable=["batch_stats"])
  return logits, new["batch_stats"]


def close(a, b, tolerance=1e-6):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance)


def test_each_is_every_network_on_its_own():
  net = Net()
  stack, image = setting(net)

  def loss(params, run):
    logits, stats = run(stack | {"params": params})
    return (logits**2).sum(), (logits, stats)

  def one_by_one(stack):
    rows = [stock(net, jax.tree.map(lambda x, n=n: x[n], stack), image[n]) for n in range(N)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

  def together(stack):
    return students.each(net, stack, image, train=True)

  grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  close(grad(stack["params"], together), grad(stack["params"], one_by_one), 1e-5)


def test_only_the_networks_own_groups_appear():
  net = Net()
  stack, image = setting(net)

  def loss(params):
    return students.each(net, stack | {"params": params}, image, train=True)[0].sum()

  text = jax.jit(jax.grad(loss)).lower(stack["params"]).as_text()
  assert set(re.findall(r"(?:feature|batch)_group_count = (\d+)", text)) <= {"1", "8"}


def test_evaluation_uses_running_statistics_and_leaves_them():
  net = Net()
  stack, image = setting(net)
  stack["batch_stats"] = jax.tree.map(lambda x: x + 0.5, stack["batch_stats"])
  logits, stats = students.each(net, stack, image)
  close(stats, stack["batch_stats"], 0)
  first = jax.tree.map(lambda x: x[0], stack)
  close(logits[0], net.apply(first, image[0], False))
  shared = students.each(net, stack, students.shared_input(image[0], N))[0]
  close(shared[0], logits[0])


def test_equal_keys_make_equal_networks():
  net, key = Net(), jax.random.key(3)
  image = jnp.zeros((B, 6, 6, 3))
  same = students.stack(net, jnp.stack([key, key]), image)
  assert all((leaf[0] == leaf[1]).all() for leaf in jax.tree.leaves(same["params"]))
  close(jax.tree.map(lambda x: x[0], same), students.start(net, key, image), 0)
  other = students.stack(net, jax.random.split(key), image)
  kernel = other["params"]["Conv_0"]["kernel"]
  assert (kernel[0] != kernel[1]).any()


def test_dropout_draws_for_each_student_from_the_key():
  net = Net(dropout=0.5)
  stack, image = setting(net, 1)
  stack = jax.tree.map(lambda x: jnp.concatenate([x, x]), stack)
  image = students.shared_input(image[0], 2)

  def logits(seed):
    return students.each(net, stack, image, jax.random.key(seed), train=True)[0]

  assert (logits(0)[0] != logits(0)[1]).any()
  np.testing.assert_array_equal(logits(0), logits(0))
  assert (logits(0) != logits(1)).any()


def test_networks_without_statistics():
  net = Stateless()
  stack, image = setting(net)
  logits, stats = students.each(net, stack, image, train=True)
  assert logits.shape == (N, B, 5) and stats == {} == stack["batch_stats"]


@pytest.mark.parametrize(
  "options", [dict(axis=1), dict(use_scale=False), dict(dtype=jnp.bfloat16)]
)
def test_unusual_normalisation_is_left_to_flax(options):
  class Unusual(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.BatchNorm(not train, **options)(x).mean((1, 2))

  net = Unusual()
  stack, image = setting(net, 1)
  variables = jax.tree.map(lambda x: x[0], stack)
  got = students.run(net, variables, image[0], train=True)
  close(got, stock(net, variables, image[0]), 0)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return {"sum": x + jnp.sin(x), "mean": x.mean()}


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_users_block_is_materialised_on_a_cpu_and_nowhere_else(platform):
  def mean(x):
    return students.run(Block(), {"params": {}, "batch_stats": {}}, x)[0]["mean"]

  def program(x, dx):
    return jax.vmap(lambda x, dx: jax.jvp(jax.grad(mean), (x,), (dx,)))(x, dx)

  x, dx = jnp.linspace(-1.0, 1.0, 12).reshape(2, 2, 3)
  x, dx = jnp.stack([x, x]), jnp.stack([dx, dx])
  lowered = jax.jit(program).trace(x, dx).lower(lowering_platforms=(platform,))
  assert ("optimization_barrier" in lowered.as_text()) == (platform == "cpu")
  for got, want in zip(program(x, dx), (jnp.full_like(x, 1 / x[0].size), 0), strict=True):
    close(got, jnp.broadcast_to(want, x.shape))
