"""Residual networks for CIFAR and ImageNet, and wide residual networks.

The branch is the last stage with its classifier, the stem everything before it.
"""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float

from okdph_jax.core import Outputs
from okdph_jax.models.layers import conv, linear, norm
from okdph_jax.models.net import Net


class Basic(nn.Module):
  """Two 3x3 convolutions (He et al., CVPR 2016, arXiv:1512.03385), projection shortcuts."""

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x, train):
    y = nn.relu(norm(train)(conv(self.width, 3, self.stride)(x)))
    y = norm(train)(conv(self.width, 3)(y))
    return nn.relu(y + shortcut(x, self.width, self.stride, train))


class Bottleneck(nn.Module):
  """Convolutions 1x1, 3x3 (with the stride) and 1x1, the last to four times the width.

  `widen` multiplies the inner width only, as in the release's WRN20-8.
  """

  width: int
  stride: int = 1
  widen: int = 1

  @nn.compact
  def __call__(self, x, train):
    inner = self.width * self.widen
    y = nn.relu(norm(train)(conv(inner, 1)(x)))
    y = nn.relu(norm(train)(conv(inner, 3, self.stride)(y)))
    y = norm(train)(conv(4 * self.width, 1)(y))
    return nn.relu(y + shortcut(x, 4 * self.width, self.stride, train))


class Preactivated(nn.Module):
  """Batch normalisation and ReLU before each convolution.

  Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146. Where the shape changes, the shortcut is
  a 1x1 convolution without batch normalisation.
  """

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x, train):
    y = nn.relu(norm(train)(x))
    if x.shape[-1] != self.width or self.stride != 1:
      x = conv(self.width, 1, self.stride)(y)
    y = nn.relu(norm(train)(conv(self.width, 3, self.stride)(y)))
    return x + conv(self.width, 3)(y)


def shortcut(
  x: Float[Array, "B h w c"], channels: int, stride: int, train: bool
) -> Float[Array, "B H W C"]:
  """The identity, or a 1x1 projection where the shape changes (option B)."""
  if x.shape[-1] == channels and stride == 1:
    return x
  return norm(train)(conv(channels, 1, stride)(x))


class Stage(nn.Module):
  """Blocks of one width; the first has the stride."""

  block: Callable[..., nn.Module]
  blocks: int
  width: int
  stride: int

  @nn.compact
  def __call__(self, x, train):
    for i in range(self.blocks):
      x = self.block(self.width, self.stride if i == 0 else 1)(x, train)
    return x


class Small(nn.Module):
  """The first layer for small images: a 3x3 convolution, `bare` before pre-activated blocks."""

  width: int
  bare: bool = False

  @nn.compact
  def __call__(self, x, train):
    x = conv(self.width, 3)(x)
    return x if self.bare else nn.relu(norm(train)(x))


class Large(nn.Module):
  """The first layers for ImageNet: a 7x7 convolution and 3x3 max pooling, both of stride 2."""

  width: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(norm(train)(conv(self.width, 7, 2)(x)))
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


class Stem(nn.Module):
  """The first layers and all stages but the last: image [B, H, W, C] -> map [B, h, w, c]."""

  entry: nn.Module
  stages: tuple[nn.Module, ...]

  def __call__(self, x, train):
    x = self.entry(x, train)
    for stage in self.stages:
      x = stage(x, train)
    return x


class Branch(nn.Module):
  """The last stage, the mean over the map, and the classifier."""

  stage: nn.Module
  classes: int
  normalise: bool = False  # after pre-activated blocks, which end without normalisation

  @nn.compact
  def __call__(self, x, train):
    x = self.stage(x, train)
    if self.normalise:
      x = nn.relu(norm(train)(x))
    feature = x.mean((1, 2))
    return Outputs(linear(feature, self.classes), feature, x)


def resnet(
  classes: int,
  entry: nn.Module,
  block: Callable[..., nn.Module],
  blocks: tuple[int, ...],
  widths: tuple[int, ...],
  about: str,
  *,
  normalise: bool = False,
) -> Net:
  """Stages of `blocks[i]` blocks of `widths[i]`; all but the first halve the map."""
  sizes = zip(blocks, widths, strict=True)
  *early, last = (Stage(block, n, w, 2 if i else 1) for i, (n, w) in enumerate(sizes))
  return Net(Stem(entry, tuple(early)), Branch(last, classes, normalise), about)


def cifar(
  classes: int,
  n: int,
  *,
  entry: int = 16,
  widths: tuple[int, ...] = (16, 32, 64),
  times: str = "",
) -> Net:
  """He's ResNet of depth 6n + 2 for small images."""
  about = (
    f"CIFAR ResNet-{6 * n + 2}{times}: basic blocks {n}-{n}-{n}, entry {entry}, "
    f"widths {'-'.join(map(str, widths))}, projection shortcuts"
  )
  return resnet(classes, Small(entry), Basic, (n,) * 3, widths, about)


def wide(classes: int, depth: int, k: int) -> Net:
  """Zagoruyko's WRN-depth-k."""
  n = (depth - 4) // 6
  widths = (16 * k, 32 * k, 64 * k)
  about = (
    f"WRN-{depth}-{k} (Zagoruyko): pre-activation basic blocks {n}-{n}-{n}, "
    f"widths {'-'.join(map(str, widths))}, no dropout"
  )
  entry = Small(16, bare=True)
  return resnet(classes, entry, Preactivated, (n,) * 3, widths, about, normalise=True)


def imagenet(classes: int, depth: int, block: type[nn.Module], blocks: tuple[int, ...]) -> Net:
  """torchvision's ResNet; its bottlenecks have the stride in the 3x3 convolution ("v1.5")."""
  about = (
    f"ImageNet ResNet-{depth} (torchvision): {block.__name__.lower()} blocks "
    f"{'-'.join(map(str, blocks))}, 7x7 stem, projection shortcuts"
  )
  return resnet(classes, Large(64), block, blocks, (64, 128, 256, 512), about)


resnet8 = partial(cifar, n=1)
resnet20 = partial(cifar, n=3)
resnet32 = partial(cifar, n=5)
resnet44 = partial(cifar, n=7)
resnet56 = partial(cifar, n=9)
resnet110_basic = partial(cifar, n=18)
resnet8x4 = partial(cifar, n=1, entry=32, widths=(64, 128, 256), times="x4")
resnet32x4 = partial(cifar, n=5, entry=32, widths=(64, 128, 256), times="x4")

resnet110 = partial(
  resnet,
  entry=Small(16),
  block=Bottleneck,
  blocks=(12, 12, 12),
  widths=(16, 32, 64),
  about="CIFAR ResNet-110: bottleneck blocks 12-12-12, inner widths 16-32-64, outputs "
  "64-128-256 (the release's; He's basic-block network is resnet110_basic)",
)
wrn20_8 = partial(
  resnet,
  entry=Small(16),
  block=partial(Bottleneck, widen=8),
  blocks=(2, 2, 2),
  widths=(16, 32, 64),
  about="CIFAR WRN20-8: bottleneck blocks 2-2-2, inner widths 128-256-512, outputs "
  "64-128-256, post-activation (the release's; not Zagoruyko's WRN-20-8)",
)

wrn_16_2 = partial(wide, depth=16, k=2)
wrn_28_10 = partial(wide, depth=28, k=10)
wrn_40_2 = partial(wide, depth=40, k=2)

resnet18_small = partial(
  resnet,
  entry=Small(64),
  block=Basic,
  blocks=(2, 2, 2, 2),
  widths=(64, 128, 256, 512),
  about="ResNet-18 for small images: basic blocks 2-2-2-2, 3x3 entry, projection shortcuts",
)
resnet18 = partial(imagenet, depth=18, block=Basic, blocks=(2, 2, 2, 2))
resnet34 = partial(imagenet, depth=34, block=Basic, blocks=(3, 4, 6, 3))
resnet50 = partial(imagenet, depth=50, block=Bottleneck, blocks=(3, 4, 6, 3))
