"""A user's own networks: what `--config.network=tests.nets:Small` names."""

import jax
from flax import linen as nn
from flax import nnx


class Small(nn.Module):
  """Nothing of okdph_jax in it: stock convolution, normalisation and dropout."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(8, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    x = nn.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1))
    return nn.Dense(self.classes)(x)


class Stateless(nn.Module):
  """Without batch statistics."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    del train
    return nn.Dense(self.classes)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


class Broken(nn.Module):
  classes: int

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(self.classes + 1)(x.mean((1, 2)))


class Noisy(nn.Module):
  """It needs random numbers that training does not give."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    if train:
      x = x + jax.random.normal(self.make_rng("noise"), x.shape)
    return nn.Dense(self.classes)(x.mean((1, 2)))


class Untrainable(nn.Module):
  classes: int

  @nn.compact
  def __call__(self, x, train):
    if train:
      raise RuntimeError("not finished\nyet")
    return nn.Dense(self.classes)(x.mean((1, 2)))


class Wide(nn.Module):
  """With an option."""

  classes: int
  width: int = 3

  @nn.compact
  def __call__(self, x, train):
    del train
    return nn.Dense(self.classes)(nn.relu(nn.Conv(self.width, (3, 3))(x)).mean((1, 2)))


class Narrow(nn.Module):
  """Of another signature."""

  outputs: int


class Nnx(nnx.Module):
  """Of Flax NNX: batch statistics and dropout."""

  def __init__(self, classes, *, width=3, rngs):
    self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.dense = nnx.Linear(width, classes, rngs=rngs)

  def __call__(self, x, train):
    x = nnx.relu(self.norm(self.conv(x), use_running_average=not train))
    return self.dense(self.dropout(x.mean((1, 2)), deterministic=not train))
