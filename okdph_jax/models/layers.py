"""Layers with the padding and initialisation of the paper's PyTorch code.

Padding is explicit: at stride 2 Flax's "SAME" pads asymmetrically, unlike PyTorch.
"""

import jax
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

# Not truncated, unlike JAX's `he_normal`.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

# PyTorch's default, used for the mobile networks by mdistiller and DOT. `he_fan_out` would
# count all C channels of a depthwise layer: its variance would be C times too small.
pytorch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
  channels: int,
  kernel: int,
  stride: int = 1,
  *,
  groups: int = 1,
  use_bias: bool = False,
  init: Initializer = he_fan_out,
) -> nn.Conv:
  """A square convolution, padded so that [h, w] stays, or at stride 2 is halved, rounded up."""
  return nn.Conv(
    channels,
    (kernel, kernel),
    stride,
    padding=kernel // 2,
    feature_group_count=groups,
    use_bias=use_bias,
    kernel_init=init,
  )


def norm(train: bool) -> nn.BatchNorm:
  """Batch normalisation over [B, h, w]; running statistics are updated by a tenth per step."""
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)


def linear(
  x: Float[Array, "B F"], features: int, *, bias_init: Initializer | None = None
) -> Float[Array, "B K"]:
  """A dense layer with PyTorch's default initialisation, U(-1/sqrt(F), 1/sqrt(F))."""
  uniform = _uniform(x.shape[-1] ** -0.5)
  return nn.Dense(features, kernel_init=uniform, bias_init=bias_init or uniform)(x)


def _uniform(bound):
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
