"""oneDNN's convolutions in XLA:CPU, if the extension `_onednn` has been built.

oneDNN, which PyTorch also calls, is about twice as fast as XLA:CPU's own convolutions. On a
CPU, the lowering of `convolution` uses `convolve` if `takes` allows it, else `convolution_cpu`.

The environment variable `OKDPH_CONVOLUTION` chooses: `xla` switches oneDNN off, `onednn` makes
it an error if it is missing. Each gives the same bits in every run, and the two agree up to the
order of float32 sums. With the precision "bfloat16" (`config.compute`) the operands of products
are rounded, as on TPUs by default; sums and results stay float32.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

from okdph_jax.runtime import host

try:  # not public; without it XLA's convolutions are used
  from jax._src.dispatch import (
    prim_requires_devices_during_lowering as _DEVICES_AT_LOWERING,
  )
except ImportError:
  _DEVICES_AT_LOWERING = None

VARIABLE = "OKDPH_CONVOLUTION"
HANDLER, SUMS = (
  "okdph_convolution",
  "okdph_channel_sums",
)  # of the extension; see `channel_sums`
TENSORS = ("lhs", "rhs", "out")  # in the order of the handler's `target`


class Choice(NamedTuple):
  """The library for convolutions: oneDNN of this version, or XLA, and why."""

  onednn: str | None
  reason: str = ""

  @property
  def name(self):
    return f"oneDNN {self.onednn}" if self.onednn else "XLA"

  def __str__(self):
    return f"{self.name} ({self.reason})" if self.reason else self.name


@functools.cache
def choice():
  """The `Choice` of this process; the first call loads the extension."""
  wanted = os.environ.get(VARIABLE, "")
  if wanted not in ("", "onednn", "xla"):
    raise ValueError(
      f"{VARIABLE}={wanted} is not known; use onednn or xla, or leave it unset (bfloat16 is "
      "--config.compute=bfloat16)"
    )
  if wanted == "xla":
    return Choice(None, f"{VARIABLE}=xla")
  if jax.default_backend() != "cpu":
    return Choice(None)
  try:
    return Choice(_load())
  except (ImportError, OSError) as error:
    if wanted:
      raise ValueError(f"{VARIABLE}={wanted} is not possible: {error}") from error
    return Choice(None, str(error))


def _load():
  """Registers the handlers; oneDNN's version. ImportError or OSError if it is missing."""
  spec = importlib.util.find_spec("okdph_jax.nn._onednn")
  if spec is None:
    raise ImportError(
      "for oneDNN, which is faster, install a C++ compiler and reinstall okdph_jax; "
      "Linux on x86-64 only"
    )
  if _DEVICES_AT_LOWERING is None:
    raise ImportError(f"the extension for oneDNN does not support jax {jax.__version__}")
  try:
    files = importlib.metadata.files("onednn-cpu-gomp") or []
    packaged = [file for file in files if file.name == "libdnnl.so.3"]
  except importlib.metadata.PackageNotFoundError:
    packaged = []  # the system may have it
  for file in packaged:  # once it is loaded, the extension finds it
    ctypes.CDLL(str(file.locate()))
  library = ctypes.CDLL(spec.origin)
  # Until the backend runs, registering is deferred, and so are its errors.
  jax.local_devices(backend="cpu")
  try:
    for name in (HANDLER, SUMS):
      handler = jax.ffi.pycapsule(getattr(library, name))
      jax.ffi.register_ffi_target(name, handler, platform="cpu")
  except AttributeError:
    raise ImportError(
      "the extension for oneDNN is from an older okdph_jax; reinstall okdph_jax"
    ) from None
  except RuntimeError:  # an FFI version that this jaxlib does not accept
    raise ImportError(
      "the extension for oneDNN was built for another jaxlib; reinstall okdph_jax "
      "with pip's --no-build-isolation"
    ) from None
  library.okdph_onednn_version.restype = ctypes.c_char_p
  return library.okdph_onednn_version().decode()


def register(primitive):
  """Makes JAX pass the devices to the lowering of a primitive, which `convolve` needs."""
  if _DEVICES_AT_LOWERING is not None:
    _DEVICES_AT_LOWERING.add(primitive)


def takes(target, geometry, lhs, rhs, dtype):
  """Whether oneDNN computes `target` for one network's image and kernel of these shapes."""
  return (
    dtype == jnp.float32
    and 3 <= len(lhs) <= 5
    and geometry.channels_last
    and set(geometry.lhs_dilation) == {1}
    and min(min(pads) for pads in geometry.padding) >= 0
    and 0 not in (*lhs, *rhs)
    and not _slower(target, geometry, lhs, rhs)
    and choice().onednn is not None
  )


def _slower(target, geometry, lhs, rhs):
  """Whether XLA's convolution is faster, according to `benchmarks.convolutions`."""
  *window, depth, _ = rhs
  reach = [(k - 1) * d + 1 for k, d in zip(window, geometry.rhs_dilation, strict=True)]
  if any(size < r for size, r in zip(lhs[1:-1], reach, strict=True)):
    return True  # includes all with an empty output
  scattered = target == "lhs" and max(geometry.window_strides) > 1
  few = depth < 8 and geometry.feature_group_count == 1
  return scattered and (max(window) == 1 or few)


def convolve(a, b, *, target, shape, geometry, stacked):
  """The tensor `target` from the two others; arguments as `convolution` binds them."""
  # The compilation cache identifies a custom partitioning only by this text and its shapes.
  with set_xla_metadata(convolution=repr((target, geometry, stacked, choice(), threads()))):
    return _partitioned(a, b, target, shape, geometry, stacked)


def threads():
  """OpenMP threads per call; the host's devices, which have a thread each, share the cores.

  The number affects the last bits, so the devices of all processes of a pod are counted: a pod
  then has the bits of one process with all its devices.
  """
  return max(1, host.cores() // jax.device_count("cpu"))


def _on_one_device(a, b, target, shape, geometry, stacked):
  """`convolve` for the part of the batch on one device."""
  if target != "rhs":
    batch = (a if target == "out" else b).shape[stacked]
    shape = (*shape[:stacked], batch, *shape[stacked + 1 :])
  return _call.bind(a, b, target=target, shape=shape, geometry=geometry, stacked=stacked)


def _abstract(a, b, *, shape, **_):
  del b
  return a.update(shape=shape, weak_type=False)  # keeps the axes a varies over


def _lower(context, a, b, *, target, shape, geometry, stacked):
  del shape
  low, high = zip(*geometry.padding, strict=True)
  spans = {
    "strides": geometry.window_strides,
    "dilation": geometry.rhs_dilation,
    "low": low,
    "high": high,
  }
  return jax.ffi.ffi_lowering(HANDLER)(
    context,
    a,
    b,
    target=np.int64(TENSORS.index(target)),
    stacked=bool(stacked),
    bfloat16=geometry.precision == "bfloat16" and host.has_bfloat16(),
    groups=np.int64(geometry.feature_group_count),
    threads=np.int64(threads()),
    **{name: np.asarray(span, np.int64) for name, span in spans.items()},
  )


_call = Primitive("onednn_convolution")  # `jax.ffi.ffi_call` does not support `shard_map`
_call.def_abstract_eval(_abstract)
mlir.register_lowering(_call, _lower, platform="cpu")


def _roles(target):
  """The names of the tensors of a call, in order: both operands, then the result."""
  return [name for name in TENSORS if name != target] + [target]


def _sharding_rule(target, shape, geometry, stacked, mesh, operands, results):
  """Only the batch may be split; the gradient of a kernel is then summed over the devices."""
  del geometry, mesh, operands, results
  tensors = [[f"{role}{axis}" for axis in range(len(shape))] for role in _roles(target)]
  for role, axes in zip(_roles(target), tensors, strict=True):
    if role != "rhs":
      axes[stacked] = "batch"
  whole = [axis for axes in tensors for axis in axes if axis != "batch"]
  *operands, result = (" ".join(axes) for axes in tensors)
  options = {"need_replication_factors": tuple(whole)}
  if target == "rhs":
    options["reduction_factors"] = ("batch",)
  return f"{', '.join(operands)} -> {result}", options


def _partition(target, shape, geometry, stacked, mesh, operands, result):
  """(mesh, what a device computes, sharding of the result, shardings of the operands)."""
  tensors = dict(zip(_roles(target), (*operands, result), strict=True))
  images = [tensor for role, tensor in tensors.items() if role != "rhs"]
  specs = [(*tensor.sharding.spec, *[None] * len(shape))[stacked] for tensor in images]
  axes = next((axes for axes in specs if axes), None)
  names = axes if isinstance(axes, tuple) else (axes,) if axes else ()
  parts = int(np.prod([mesh.shape[name] for name in names]))
  if any(tensor.shape[stacked] % parts for tensor in images):
    axes, names = None, ()

  def sharding(role):
    spec = [None] * stacked + [axes] if role != "rhs" else []
    return NamedSharding(mesh, PartitionSpec(*spec))

  def local(a, b):
    solution = _on_one_device(a, b, target, shape, geometry, stacked)
    return lax.psum(solution, names) if target == "rhs" and names else solution

  *operands, result = map(sharding, _roles(target))
  return mesh, local, result, tuple(operands)


_partitioned = custom_partitioning(_on_one_device, static_argnums=(2, 3, 4, 5))
_partitioned.def_partition(_partition, sharding_rule=_sharding_rule)
