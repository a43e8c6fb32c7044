"""A tiny network with a stem and a branch, and data, contexts and learners for the tests."""

import functools

import jax
import numpy as np
from flax import linen as nn

from okdph_jax.core import Batch, Learner, Outputs
from okdph_jax.methods.protocol import Context
from okdph_jax.models import Net
from okdph_jax.models.layers import conv, linear, norm
from okdph_jax.nn.students import start

B, K = 4, 3

# Four times faster to compile: there are many programs here, and none runs for long.
jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)


class Stem(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.relu(norm(train)(conv(4, 3, 2)(x)))


class Branch(nn.Module):
  classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(norm(train)(conv(8, 3, 2)(x)))
    feature = x.mean((1, 2))
    return Outputs(linear(feature, self.classes), feature, x)


class Linear(nn.Module):
  """Logits are the first K pixels, scaled, so that a test chooses the logits."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    scale = self.param("scale", nn.initializers.ones, ())
    return scale * x.reshape(len(x), -1)[:, : self.classes]


def net(classes=K):
  return Net(Stem(), Branch(classes), "one convolution each")


def batch(size=B, seed=0):
  image = np.random.default_rng(seed).normal(size=(size, 8, 8, 1)).astype(np.float32)
  return Batch(image, np.arange(size, dtype=np.int32) % K)


def augment(views):
  """Views that differ from each other and are the same in every step."""
  noise = np.random.default_rng(7).normal(size=(views, 1, 8, 8, 1)).astype(np.float32)
  return lambda key, image: image[None] + 0.1 * noise


def context(network=None, *, teacher=False, epochs=4, epoch_steps=3):
  network = network or net()
  return Context(network, K, epoch_steps, epochs, (net(), trained()) if teacher else None)


@functools.cache
def trained():
  """The variables of a network, untrained."""
  return jit(lambda: start(net(), jax.random.key(9), batch().image))()


def learner(params, stats=None, memory=None):
  return Learner(
    params=params, stats=stats or {"students": {}, "shared": {}}, memory=memory or {}
  )
