"""Batch normalisation with an explicit derivative.

Automatic differentiation of `nn.BatchNorm` stores several tensors of the size of x for the
backward pass; the explicit derivative stores only x.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from okdph_jax.nn import execution
from okdph_jax.nn.channel_sums import spread, sums


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def normalize(
  x: Float[Array, "*B C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
  """Normalises x over all axes but the last: (y, mean, variance).

  y = scale (x - mean) / sqrt(variance + epsilon) + bias (Ioffe and Szegedy, ICML 2015,
  arXiv:1502.03167); the variance is E[x^2] - E[x]^2, clipped at zero, as in Flax. All is
  computed in the dtype of `scale`; y has that of x.
  """
  dtype, x = x.dtype, x.astype(scale.dtype)
  mean, square = sums(x, x, jnp.zeros_like(scale)) / count(x)
  variance = jnp.maximum(0, square - mean * mean)
  y = (x - mean) * (scale * lax.rsqrt(variance + epsilon)) + bias
  return y.astype(dtype), mean, variance


@normalize.defjvp
def _derivative(epsilon, primals, tangents):
  x, scale, _ = primals
  y, mean, variance = normalize(*primals, epsilon)
  return (y, mean, variance), _tangent(x, scale, mean, variance + epsilon, *tangents)


@jax.checkpoint  # else x is stored in the dtype of the scale, which may be larger
def _tangent(x, scale, mean, variance, dx, dscale, dbias):
  """Linear in dx, dscale and dbias, with two sums; the same holds for its transpose."""
  dtype = x.dtype
  x, dx = x.astype(scale.dtype), dx.astype(scale.dtype)
  inverse = lax.rsqrt(variance)
  slope = scale * inverse
  dmean, along = sums(dx, x, mean) / count(x)
  steepness = inverse * (dscale - slope * inverse * along)
  dy = slope * dx + spread(jnp.stack([dbias - slope * dmean, steepness]), x, mean)
  return dy.astype(dtype), dmean, 2 * along


def count(x: Float[Array, "*B C"]) -> int:
  """The number of values per channel."""
  return x.size // x.shape[-1]


def is_plain(
  module: nn.BatchNorm, x: Array, use_running_average: bool | None = None, *, mask=None
) -> bool:
  """Whether `batch_norm` can replace this call of an `nn.BatchNorm`."""
  average = nn.merge_param(
    "use_running_average", module.use_running_average, use_running_average
  )
  stored = x.dtype in (module.param_dtype, execution.current().dtype)
  affine = module.use_scale and module.use_bias and stored
  local = module.axis == -1 and module.axis_name is None and mask is None
  return not average and affine and local and module.dtype is None


def batch_norm(module: nn.BatchNorm, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
  """The output of `module` in training; also updates its running statistics.

  If groups of the batch are normalised separately, see `Execution`, the update uses the mean of
  their means and variances.
  """
  scale, bias = (module.get_variable("params", name) for name in ("scale", "bias"))
  groups = execution.current().groups(len(x))
  if groups == 1:
    y, mean, variance = normalize(x, scale, bias, module.epsilon)
  else:
    apart = x.reshape(groups, -1, *x.shape[1:])
    each = jax.vmap(lambda x: normalize(x, scale, bias, module.epsilon))
    y, mean, variance = each(apart)
    y, mean, variance = y.reshape(x.shape), mean.mean(0), variance.mean(0)
  for name, value in {"mean": mean, "var": variance}.items():
    running = module.get_variable("batch_stats", name)
    running += (1 - module.momentum) * (value - running)
    module.put_variable("batch_stats", name, running)
  return y
