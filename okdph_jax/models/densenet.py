"""DenseNets for small images (Huang et al., CVPR 2017, arXiv:1608.06993).

The branch is the last dense block with its classifier, the stem everything before it.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from okdph_jax.core import Outputs
from okdph_jax.models import layers
from okdph_jax.models.layers import linear, norm
from okdph_jax.models.net import Net

conv = partial(layers.conv, init=layers.he_fan_in)


class Layer(nn.Module):
  """Appends `growth` channels, with or without a bottleneck of four times as many."""

  growth: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x, train):
    y = nn.relu(norm(train)(x))
    if self.bottleneck:
      y = nn.relu(norm(train)(conv(4 * self.growth, 1)(y)))
    return jnp.concatenate([x, conv(self.growth, 3)(y)], -1)


class Block(nn.Module):
  """Layers, each of which sees the outputs of all layers before it."""

  layers: int
  growth: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x, train):
    for _ in range(self.layers):
      x = Layer(self.growth, self.bottleneck)(x, train)
    return x


class Transition(nn.Module):
  """A 1x1 convolution to the part `compression` of the channels, and 2x2 average pooling."""

  compression: float

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(norm(train)(x))
    x = conv(int(x.shape[-1] * self.compression), 1)(x)
    return nn.avg_pool(x, (2, 2), (2, 2))


class Stem(nn.Module):
  """A 3x3 convolution, then two dense blocks, each followed by a transition."""

  width: int
  block: Callable[[], nn.Module]
  compression: float

  @nn.compact
  def __call__(self, x, train):
    x = conv(self.width, 3)(x)
    for _ in range(2):
      x = self.block()(x, train)
      x = Transition(self.compression)(x, train)
    return x


class Branch(nn.Module):
  """The last block, batch normalisation and ReLU, the mean over the map, the classifier."""

  block: Callable[[], nn.Module]
  classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(norm(train)(self.block()(x, train)))
    feature = x.mean((1, 2))
    return Outputs(linear(feature, self.classes, bias_init=nn.initializers.zeros), feature, x)


def densenet40_12(classes: int) -> Net:
  """DenseNet-BC with three blocks of six layers; transitions halve the channels."""
  block = partial(Block, layers=6, growth=12, bottleneck=True)
  about = "CIFAR DenseNet-BC-40-12: 6-6-6 bottleneck layers, growth 12, compression 0.5"
  return Net(Stem(24, block, compression=0.5), Branch(block, classes), about)


def densenet40_12_plain(classes: int) -> Net:
  """DenseNet with three blocks of twelve layers, without bottlenecks and compression."""
  block = partial(Block, layers=12, growth=12, bottleneck=False)
  about = "CIFAR DenseNet-40-12: 12-12-12 layers, growth 12, no bottleneck, no compression"
  return Net(Stem(16, block, compression=1.0), Branch(block, classes), about)
