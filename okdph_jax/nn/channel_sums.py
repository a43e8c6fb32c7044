"""The pairs of sums over a batch that batch normalisation needs, in one pass.

XLA:CPU reads its operands once for each sum, and writes their product to memory in between. The
extension of `onednn` reads them once; without it, and on accelerators, XLA computes the sums.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from okdph_jax.nn import onednn


def sums(
  a: Float[Array, "*B C"], x: Float[Array, "*B C"], center: Float[Array, " C"]
) -> Float[Array, "2 C"]:
  """The sums of a and of a (x - center) over all axes but the last."""
  return _sums.bind(*_alike(a, x, center), stacked=0)


def spread(
  c: Float[Array, "2 C"], x: Float[Array, "*B C"], center: Float[Array, " C"]
) -> Float[Array, "*B C"]:
  """c[0] + c[1] (x - center), the transpose of `sums`, which is linear in a."""
  return _spread.bind(*_alike(c, x, center), stacked=0)


def _alike(*operands):
  """The operands, cast to vary over the same axes of `shard_map`."""
  each = [jax.typeof(x).manual_axis_type.varying for x in operands]
  every = frozenset().union(*each)
  return [
    lax.pcast(x, tuple(every - own), to="varying")
    for x, own in zip(operands, each, strict=True)
  ]


# With `stacked` leading axes S, a and x are [*S, *B, C], center is [*S, C], sums [*S, 2, C].
_sums, _spread = Primitive("channel_sums"), Primitive("channel_spread")


def _sums_by_xla(a, x, center, *, stacked):
  axes = tuple(range(stacked, x.ndim - 1))
  return jnp.stack([a.sum(axes), (a * (x - _wide(center, x, stacked))).sum(axes)], stacked)


def _spread_by_xla(c, x, center, *, stacked):
  first, second = (_wide(part, x, stacked) for part in jnp.moveaxis(c, stacked, 0))
  return first + second * (x - _wide(center, x, stacked))


def _wide(value, x, stacked):
  """[*S, C] with an axis of length 1 for each of B."""
  return jnp.expand_dims(value, tuple(range(stacked, x.ndim - 1)))


def _sums_on_cpu(a, x, center, *, stacked):
  if onednn.choice().onednn is None or x.dtype != jnp.float32 or not x.size:
    return _sums_by_xla(a, x, center, stacked=stacked)
  # The compilation cache identifies a custom partitioning only by this text and its shapes.
  with set_xla_metadata(channel_sums=repr((stacked, onednn.choice(), onednn.threads()))):
    return _partitioned(a, x, center, stacked)


def _on_one_device(a, x, center, stacked):
  del stacked
  return _call.bind(a, x, center)


def _sharding_rule(stacked, mesh, operands, results):
  """The stack and the batch may be split; sums over a split batch are summed over devices."""
  del mesh, results
  stack = [f"s{axis}" for axis in range(stacked)]
  rest = [f"r{axis}" for axis in range(len(operands[0].shape) - stacked - 2)]
  image = " ".join([*stack, "batch", *rest, "c"])
  center, result = (" ".join([*stack, *axes]) for axes in (["c"], ["two", "c"]))
  return f"{image}, {image}, {center} -> {result}", {
    "reduction_factors": ("batch",),
    "need_replication_factors": (*rest, "c", "two"),  # in the order in which they occur
  }


def _partition(stacked, mesh, operands, result):
  """(mesh, what a device computes, sharding of the result, shardings of the operands)."""
  del result
  a = operands[0]
  *stack, batch = (
    names if length % math.prod(mesh.shape[name] for name in names) == 0 else ()
    for length, names in zip(a.shape, _names(a.sharding.spec, stacked + 1), strict=False)
  )

  def local(a, x, center):
    out = _on_one_device(a, x, center, stacked)
    return lax.psum(out, batch) if batch else out

  image = NamedSharding(mesh, PartitionSpec(*(names or None for names in (*stack, batch))))
  small = NamedSharding(mesh, PartitionSpec(*(names or None for names in stack)))
  return mesh, local, small, (image, image, small)


def _names(spec, count):
  """The axes of the mesh over which each of the first dimensions is split."""
  spec = (*spec, *[None] * count)[:count]
  return [names if isinstance(names, tuple) else (names,) if names else () for names in spec]


_partitioned = custom_partitioning(_on_one_device, static_argnums=(3,))
_partitioned.def_partition(_partition, sharding_rule=_sharding_rule)

_call = Primitive("onednn_channel_sums")  # `jax.ffi.ffi_call` does not support `shard_map`
_call.def_abstract_eval(lambda a, x, center: _abstract_sums(a, x, center, center.ndim - 1))


def _lower(context, *operands):
  lower = jax.ffi.ffi_lowering(onednn.SUMS)
  return lower(context, *operands, threads=np.int64(onednn.threads()))


mlir.register_lowering(_call, _lower, platform="cpu")


def _abstract_sums(a, x, center, stacked):
  del x
  return a.update(shape=(*center.shape[:stacked], 2, center.shape[-1]), weak_type=False)


def _abstract_spread(c, x, center, stacked):
  del center, stacked
  return c.update(shape=x.shape, weak_type=False)


def _jvp(primitive, by_xla, primals, tangents, *, stacked):
  first, *rest = primals
  dfirst, *drest = map(ad.instantiate_zeros, tangents)
  out = primitive.bind(*primals, stacked=stacked)
  _, moved = jax.jvp(partial(by_xla, first, stacked=stacked), rest, drest)
  return out, primitive.bind(dfirst, *rest, stacked=stacked) + moved


def _transpose(transposed, cotangent, first, *rest, stacked):
  if type(cotangent) is ad.Zero:
    return ad.Zero(first.aval), None, None
  return transposed.bind(cotangent, *rest, stacked=stacked), None, None


def _batch(primitive, operands, axes, *, stacked):
  n = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
  operands = (
    jnp.broadcast_to(x, (n, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(operands, axes, strict=True)
  )
  return primitive.bind(*operands, stacked=stacked + 1), 0


for _primitive, _by_xla, _abstract, _transposed in (
  (_sums, _sums_by_xla, _abstract_sums, _spread),
  (_spread, _spread_by_xla, _abstract_spread, _sums),
):
  _primitive.def_impl(jax.jit(_by_xla, static_argnames="stacked"))
  _primitive.def_abstract_eval(_abstract)
  ad.primitive_jvps[_primitive] = partial(_jvp, _primitive, _by_xla)
  ad.primitive_transposes[_primitive] = partial(_transpose, _transposed)
  batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
  mlir.register_lowering(_primitive, mlir.lower_fun(_by_xla, multiple_results=False))
mlir.register_lowering(
  _sums, mlir.lower_fun(_sums_on_cpu, multiple_results=False), platform="cpu"
)
onednn.register(_sums)
