"""A convolution that `vmap` does not turn into a grouped one, for stacked networks.

Mapped over kernels, `lax.conv_general_dilated` becomes a grouped convolution, whose gradients
are slow (jax-ml/jax#13800, openxla/xla#34273; by a factor of about 20 on CPU). Here `vmap`
marks the tensors as stacked, one per network, and the lowering runs an ordinary convolution for
each network, in the forward pass and in both gradients. On a CPU it calls oneDNN if it is
installed (`onednn`), else XLA, in another form where XLA is slow (`convolution_cpu`).

A convolution is the trilinear form <conv(lhs, rhs), out>: two of the three tensors determine
the third, which is the output, the gradient of the image, or the gradient of the kernel. A
single primitive computes all three. It is its own transpose, so any composition of `grad`,
`jvp` and `vmap` ends in ordinary convolutions.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from okdph_jax.nn import convolution_cpu, onednn
from okdph_jax.runtime import host


def conv_general_dilated(
  lhs,
  rhs,
  window_strides,
  padding,
  lhs_dilation=None,
  rhs_dilation=None,
  dimension_numbers=None,
  feature_group_count=1,
  precision=None,
):
  """`lax.conv_general_dilated` as `nn.Conv` calls it; `vmap` does not make it a grouped one.

  Without oneDNN, `vmap` over kernels unrolls: the program grows with the number of networks.
  """
  dimensions = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  ones = (1,) * (lhs.ndim - 2)
  if isinstance(padding, str):
    windows = (rhs.shape[d] for d in dimensions.rhs_spec[2:])
    reach = [(k - 1) * d + 1 for k, d in zip(windows, rhs_dilation or ones, strict=True)]
    space = [lhs.shape[d] for d in dimensions.lhs_spec[2:]]
    padding = lax.padtype_to_pads(space, reach, window_strides, padding)
  geometry = Geometry(
    tuple(window_strides),
    tuple(map(tuple, padding)),
    tuple(lhs_dilation or ones),
    tuple(rhs_dilation or ones),
    dimensions,
    feature_group_count,
    precision,
  )
  shape = jax.eval_shape(geometry.convolve, lhs, rhs).shape
  return _solve("out", shape, geometry, lhs=lhs, rhs=rhs)


class Geometry(NamedTuple):
  """The parameters of a convolution, as in `lax.conv_general_dilated`."""

  window_strides: tuple
  padding: tuple
  lhs_dilation: tuple
  rhs_dilation: tuple
  dimension_numbers: lax.ConvDimensionNumbers
  feature_group_count: int
  precision: Any

  def convolve(self, lhs, rhs):
    return lax.conv_general_dilated(lhs, rhs, **self._asdict())

  @property
  def channels_last(self):
    """Whether images are [B, *space, C] and kernels [*window, C, O], as in `nn.Conv`."""
    lhs, rhs, out = self.dimension_numbers
    last = len(lhs) - 1
    image, kernel = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    return lhs == out == image and rhs == kernel


_OPERANDS = {"out": ("lhs", "rhs"), "lhs": ("rhs", "out"), "rhs": ("lhs", "out")}

convolution_p = Primitive("convolution")


def _solve(target, shape, geometry, stacked=False, **tensors):
  """Computes the tensor `target` of this shape from the other two of lhs, rhs and out.

  stacked: whether all three have a leading axis of networks.
  """
  a, b = (tensors[role] for role in _OPERANDS[target])
  # Under shard_map a replicated kernel is cast to vary like its image; the transpose of the
  # cast sums the kernel's gradient over the devices.
  varying = _varying(a) | _varying(b)
  a, b = (lax.pcast(x, tuple(varying - _varying(x)), to="varying") for x in (a, b))
  return convolution_p.bind(
    a, b, target=target, shape=shape, geometry=geometry, stacked=stacked
  )


def _varying(x):
  return jax.typeof(x).manual_axis_type.varying


def plain(a, b, *, target, shape, geometry, convolve=Geometry.convolve):
  """Computes `target` for one network, by any bilinear `convolve(geometry, lhs, rhs)`."""
  convolve = partial(convolve, geometry)
  if target == "out":
    return convolve(a, b)
  unknown = jax.typeof(a).update(shape=shape)
  linear = partial(convolve, rhs=a) if target == "lhs" else partial(convolve, a)
  return jax.linear_transpose(linear, unknown)(b)[0]


def _unrolled(a, b, *, target, shape, geometry, stacked, solve=plain):
  """Calls `solve` for each network."""
  solve = partial(solve, target=target, shape=shape[stacked:], geometry=geometry)
  if not stacked:
    return solve(a, b)
  return jnp.stack([solve(a[n], b[n]) for n in range(shape[0])])


def _on_cpu(a, b, *, target, shape, geometry, stacked):
  tensors = dict(zip(_OPERANDS[target], (a, b), strict=True))
  shapes = {role: x.shape for role, x in tensors.items()} | {target: shape}
  lhs, rhs = shapes["lhs"][stacked:], shapes["rhs"][stacked:]
  options = {"target": target, "shape": shape, "geometry": geometry, "stacked": stacked}
  taken = onednn.takes(target, geometry, lhs, rhs, a.dtype)
  if geometry.precision == "bfloat16" and not (taken and host.has_bfloat16()):
    a, b = (lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) for x in (a, b))
  if taken:
    return onednn.convolve(a, b, **options)
  return _unrolled(a, b, **options, solve=partial(convolution_cpu.solve, plain=plain))


def _abstract(a, b, *, target, shape, geometry, stacked):
  del b, target, geometry, stacked
  return a.update(shape=shape, weak_type=False)  # keeps the axes over which a varies


def _transpose(position, cotangent, *operands, target, shape, geometry, stacked):
  del shape
  wanted, given = _OPERANDS[target][position], _OPERANDS[target][1 - position]
  tensors = {target: cotangent, given: operands[1 - position]}
  return _solve(wanted, operands[position].aval.shape, geometry, stacked, **tensors)


def _batch(operands, axes, *, target, shape, geometry, stacked):
  roles = _OPERANDS[target]
  mapped = {role for role, axis in zip(roles, axes, strict=True) if axis is not None}
  if {target, *mapped} == {"lhs", "out"}:
    return _fold(operands, axes, target, shape, geometry, stacked)
  n = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
  operands = (
    jnp.broadcast_to(x, (n, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(operands, axes, strict=True)
  )
  if stacked:  # networks of networks
    operands = (lax.collapse(x, 0, 2) for x in operands)
  networks = n * shape[0] if stacked else n
  tensors = dict(zip(roles, operands, strict=True))
  solution = _solve(target, (networks, *shape[stacked:]), geometry, True, **tensors)
  return solution.reshape(n, *shape), 0


def _fold(operands, axes, target, shape, geometry, stacked):
  """For one kernel: the mapped axis becomes part of the batch.

  It becomes the minor part, so that a batch that is sharded over devices stays where it is.
  """
  batch = {
    role: dimensions[0] + stacked
    for role, dimensions in zip(("lhs", "rhs", "out"), geometry.dimension_numbers, strict=True)
  }
  tensors = dict(zip(_OPERANDS[target], operands, strict=True))
  role = "lhs" if target == "out" else "out"
  x, axis = tensors[role], axes[_OPERANDS[target].index(role)]
  n, inner = x.shape[axis], batch[role]
  x = jnp.moveaxis(x, axis, inner + 1)
  tensors[role] = lax.collapse(x, inner, inner + 2)
  outer = batch[target]
  split = (*shape[: outer + 1], n, *shape[outer + 1 :])
  folded = (*shape[:outer], shape[outer] * n, *shape[outer + 1 :])
  solution = _solve(target, folded, geometry, stacked, **tensors)
  return solution.reshape(split), outer + 1


_STATIC = ("target", "shape", "geometry", "stacked")
convolution_p.def_impl(jax.jit(_unrolled, static_argnames=_STATIC))
convolution_p.def_abstract_eval(_abstract)
ad.defbilinear(convolution_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[convolution_p] = _batch
mlir.register_lowering(convolution_p, mlir.lower_fun(_unrolled, multiple_results=False))
mlir.register_lowering(
  convolution_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu"
)
onednn.register(convolution_p)
