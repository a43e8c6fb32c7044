"""ShuffleNet-v2 (Ma et al., ECCV 2018, arXiv:1807.11164) for small images, as in mdistiller.

The branch is the last stage (464 channels) with the classifier.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from okdph_jax.core import Outputs
from okdph_jax.models.layers import conv, linear, norm, pytorch_uniform
from okdph_jax.models.net import Net

EARLY, LAST = ((116, 4), (232, 8)), (464, 4)  # channels and units of each stage
HEAD = 1024


class Unit(nn.Module):
  """Convolutions 1x1, depthwise 3x3 and 1x1 on half of the channels; then a channel shuffle.

  The first unit of a stage has stride 2, and each half is computed from all channels.
  """

  channels: int
  first: bool

  @nn.compact
  def __call__(self, x, train):
    half = self.channels // 2

    def pointwise(x):
      return nn.relu(norm(train)(conv(half, 1, init=pytorch_uniform)(x)))

    def depthwise(x):
      width, stride = x.shape[-1], 2 if self.first else 1
      return norm(train)(conv(width, 3, stride, groups=width, init=pytorch_uniform)(x))

    left, right = (x, x) if self.first else jnp.split(x, 2, -1)
    if self.first:
      left = pointwise(depthwise(left))
    return shuffle(jnp.concatenate([left, pointwise(depthwise(pointwise(right)))], -1))


def shuffle(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
  """Interleaves the two halves of the channels: 0, C/2, 1, C/2 + 1, ..."""
  return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def stage(x: Float[Array, "B h w c"], channels: int, units: int, train: bool) -> Array:
  for i in range(units):
    x = Unit(channels, first=i == 0)(x, train)
  return x


class Stem(nn.Module):
  """A 1x1 convolution and all stages but the last; the map is a quarter of the image."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(norm(train)(conv(24, 1, init=pytorch_uniform)(x)))
    for channels, units in EARLY:
      x = stage(x, channels, units, train)
    return x


class Branch(nn.Module):
  """The last stage, a 1x1 convolution, the mean over the map, and the classifier."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    x = stage(x, *LAST, train)
    x = nn.relu(norm(train)(conv(HEAD, 1, init=pytorch_uniform)(x)))
    feature = x.mean((1, 2))
    return Outputs(linear(feature, self.classes), feature, x)


def shufflenet_v2(classes: int) -> Net:
  about = (
    "ShuffleNet-v2 1.0x for small images: 1x1 entry, units 4-8-4, channels 116-232-464-1024"
  )
  return Net(Stem(), Branch(classes), about)
