"""MobileNet (Howard et al., 2017, arXiv:1704.04861), at ImageNet's sizes.

The branch is the last stage (the two blocks of 1024 channels) with the classifier.
"""

from flax import linen as nn

from okdph_jax.core import Outputs
from okdph_jax.models.layers import conv, linear, norm
from okdph_jax.models.net import Net

EARLY = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5)
LAST = ((1024, 2), (1024, 1))


class Separable(nn.Module):
  """A depthwise 3x3, which carries the stride, and a 1x1 to `width` channels."""

  width: int
  stride: int

  @nn.compact
  def __call__(self, x, train):
    channels = x.shape[-1]
    x = conv(channels, 3, self.stride, groups=channels, init=uniform)(x)
    x = nn.relu(norm(train)(x))
    return nn.relu(norm(train)(conv(self.width, 1, init=uniform)(x)))


class Stem(nn.Module):
  """A strided 3x3 convolution and the blocks up to 512 channels, a sixteenth of the image."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(norm(train)(conv(32, 3, 2, init=uniform)(x)))
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


# PyTorch's default, which the code it is usually distilled with (mdistiller, DOT) keeps. He's
# fan-out counts all C channels of a depthwise layer: its variance would be C times too small.
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def mobilenet_v1(classes: int) -> Net:
  about = (
    "ImageNet MobileNet-v1, width 1.0: 3x3 stem, 13 depthwise-separable blocks, no dropout"
  )
  return Net(Stem(), Branch(classes), about)
