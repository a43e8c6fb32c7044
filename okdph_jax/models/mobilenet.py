"""MobileNet v1 for ImageNet, and v2 for small images as in mdistiller.

The branch of v1 begins with the two blocks of 1024 channels, that of v2 after the stage of 96
channels.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from okdph_jax.core import Outputs
from okdph_jax.models.layers import conv, linear, norm, pytorch_uniform
from okdph_jax.models.net import Net

# Version 1: (channels, stride) of each block.
EARLY = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5)
LAST = ((1024, 2), (1024, 1))

# Version 2: (channels, blocks, stride of the first block, expansion in a block) of each stage.
EARLY_V2 = ((16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6))
LAST_V2 = ((160, 3, 1, 6), (320, 1, 1, 6))


class Separable(nn.Module):
  """A depthwise 3x3 convolution with the stride, and a 1x1 convolution to `width` channels."""

  width: int
  stride: int

  @nn.compact
  def __call__(self, x, train):
    channels = x.shape[-1]
    x = conv(channels, 3, self.stride, groups=channels, init=pytorch_uniform)(x)
    x = nn.relu(norm(train)(x))
    return nn.relu(norm(train)(conv(self.width, 1, init=pytorch_uniform)(x)))


class Stem(nn.Module):
  """A strided 3x3 convolution and the blocks up to 512 channels (Howard et al., 2017,
  arXiv:1704.04861); the map is a sixteenth of the image on each side."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(norm(train)(conv(32, 3, 2, init=pytorch_uniform)(x)))
    for width, stride in EARLY:
      x = Separable(width, stride)(x, train)
    return x


class Branch(nn.Module):
  """The last two blocks, the mean over the map, and the classifier."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    for width, stride in LAST:
      x = Separable(width, stride)(x, train)
    feature = x.mean((1, 2))
    return Outputs(linear(feature, self.classes), feature, x)


def mobilenet_v1(classes: int) -> Net:
  about = (
    "ImageNet MobileNet-v1, width 1.0: 3x3 stem, 13 depthwise-separable blocks, no dropout"
  )
  return Net(Stem(), Branch(classes), about)


class InvertedResidual(nn.Module):
  """1x1 to more channels, depthwise 3x3, and 1x1 without activation to `width` channels."""

  width: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x, train):
    channels = x.shape[-1]
    inner = channels * self.expansion
    y = nn.relu6(norm(train)(biased(inner, 1)(x)))
    y = nn.relu6(norm(train)(biased(inner, 3, self.stride, groups=inner)(y)))
    y = norm(train)(biased(self.width, 1)(y))
    return x + y if self.stride == 1 and channels == self.width else y


def inverted_residuals(
  x: Float[Array, "B h w c"], stages: Sequence[tuple[int, int, int, int]], train: bool
) -> Array:
  for width, blocks, stride, expansion in stages:
    for i in range(blocks):
      x = InvertedResidual(width, stride if i == 0 else 1, expansion)(x, train)
  return x


class StemV2(nn.Module):
  """A 1x1 convolution and the blocks up to 96 channels (Sandler et al., CVPR 2018,
  arXiv:1801.04381); the map is an eighth of the image on each side."""

  @nn.compact
  def __call__(self, x, train):
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # mdistiller pads this 1x1 convolution
    x = nn.relu6(norm(train)(biased(32, 1)(x)))
    return inverted_residuals(x, EARLY_V2, train)


class BranchV2(nn.Module):
  """The last blocks, a 1x1 convolution, the mean over the map, and the classifier."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    x = inverted_residuals(x, LAST_V2, train)
    x = nn.relu6(norm(train)(biased(1280, 1)(x)))
    feature = x.mean((1, 2))
    return Outputs(linear(feature, self.classes), feature, x)


biased = functools.partial(conv, use_bias=True, init=pytorch_uniform)  # as in mdistiller


def mobilenet_v2(classes: int) -> Net:
  about = (
    "MobileNet-v2 for small images, width 1.0: 1x1 entry, 17 inverted residuals, three of "
    "stride 2, biases, no dropout"
  )
  return Net(StemV2(), BranchV2(classes), about)
