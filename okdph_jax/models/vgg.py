"""VGG with batch normalisation for small images (Simonyan and Zisserman, ICLR 2015,
arXiv:1409.1556).

The branch is the last group of convolutions with the head, the stem the four before it.
"""

from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float

from okdph_jax.core import Outputs
from okdph_jax.models.layers import conv, norm
from okdph_jax.models.net import Net


class Group(nn.Module):
  """3x3 convolutions of the given widths, each with batch normalisation and ReLU."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x, train):
    for width in self.widths:
      x = nn.relu(norm(train)(conv(width, 3, use_bias=True)(x)))
    return x


class Stem(nn.Module):
  """Groups, each followed by 2x2 max pooling while the map is at least `pooled` wide."""

  groups: tuple[tuple[int, ...], ...]
  pooled: int = 0

  @nn.compact
  def __call__(self, x, train):
    for widths in self.groups:
      x = Group(widths)(x, train)
      if min(x.shape[1:3]) >= self.pooled:
        x = halve(x)
    return x


class Branch(nn.Module):
  """The last group and an MLP with inner layers of the widths `hidden`.

  The MLP's input is the mean over the map; for images of 32x32 the map of `vgg16` is 1x1.
  """

  widths: tuple[int, ...]
  classes: int
  hidden: tuple[int, ...] = ()
  pool: bool = False

  @nn.compact
  def __call__(self, x, train):
    x = Group(self.widths)(x, train)
    x = halve(x) if self.pool else x
    feature = y = x.mean((1, 2))
    for width in self.hidden:
      y = nn.relu(dense(width)(y))
    return Outputs(dense(self.classes)(y), feature, x)


dense = partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))


def halve(x: Float[Array, "B h w c"]) -> Float[Array, "B h/2 w/2 c"]:
  """2x2 max pooling; an odd last row or column is dropped.

  The gradient of `nn.max_pool`, a select-and-scatter, is several times slower.
  """
  b, h, w, c = x.shape
  h, w = h // 2, w // 2
  if min(h, w) == 0:
    raise ValueError(
      "this VGG halves the image five times and needs at least 32x32 pixels; choose a resnet, "
      "or set data.image_size"
    )
  return x[:, : 2 * h, : 2 * w].reshape(b, h, 2, w, 2, c).max((2, 4))


def vgg16(classes: int) -> Net:
  """The release's VGG-16: five poolings, an MLP of 512-512 without dropout."""
  groups = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512)
  branch = Branch((512, 512, 512), classes, hidden=(512, 512), pool=True)
  about = (
    "CIFAR VGG-16 with batch normalisation: convolutions 2-2-3-3-3, MLP 512-512, no dropout"
  )
  return Net(Stem(groups), branch, about)


def distillation(classes: int, widths: tuple[int, ...], n: int) -> Net:
  """The VGGs of offline distillation (Tian et al., ICLR 2020, arXiv:1910.10699).

  `n` convolutions of each width. Maps stay at 4x4 or above; the classifier is a single layer.
  """
  *groups, last = ((width,) * n for width in widths)
  about = (
    f"CIFAR VGG-{5 * n + 3} with batch normalisation: {5 * n} convolutions, widths "
    f"{'-'.join(map(str, widths))}, mean and one dense layer (offline distillation's)"
  )
  return Net(Stem(tuple(groups), pooled=8), Branch(last, classes), about)


vgg8 = partial(distillation, widths=(64, 128, 256, 512, 512), n=1)
vgg13 = partial(distillation, widths=(64, 128, 256, 512, 512), n=2)
