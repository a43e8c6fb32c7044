"""N networks of one architecture as one stacked tree: initialises, runs and mixes them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from okdph_jax.core import Variables
from okdph_jax.hybridization import hybridize
from okdph_jax.nn import convolution_cpu, execution
from okdph_jax.nn.batch_norm import batch_norm, is_plain
from okdph_jax.nn.convolution import conv_general_dilated


def stack(net: nn.Module, keys: Key[Array, " N"], *inputs: PyTree) -> Variables:
  """Initialises one network per key: variables with a leading axis N on every leaf.

  inputs: of one network, e.g. an image [B, H, W, C]; arrays or shapes. Equal keys make equal
  networks.
  """
  return jax.vmap(lambda key: start(net, key, *inputs))(keys)


def start(net: nn.Module, key: Key[Array, ""], *inputs: PyTree) -> Variables:
  """Initialises one network without running it: {"params": ..., "batch_stats": ...}."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
  variables = net.lazy_init({"params": key, "dropout": key}, *shapes, False)
  return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def run(
  net: nn.Module,
  variables: Variables,
  x: PyTree,
  key: Key[Array, ""] | None = None,
  *,
  train: bool = False,
) -> tuple[Any, PyTree]:
  """Runs one network: (outputs, batch statistics afterwards).

  x: its input, [B, ...]. key: for dropout. With `train=False` the statistics are unchanged. The
  outputs are float32 whatever the current `Execution`.
  """
  return _run(net, variables, execution.current().spread(x), key, train)


def _run(net, variables, x, key, train):
  rngs = None if key is None else {"dropout": key}
  with nn.intercept_methods(_own_layers):
    if not train:
      return net.apply(variables, x, False, rngs=rngs), variables["batch_stats"]
    outputs, new = net.apply(variables, x, True, rngs=rngs, mutable=["batch_stats"])
  if execution.current().dtype is not None:
    outputs = jax.tree.map(lambda y: y.astype(jnp.float32), outputs)
  return outputs, new.get("batch_stats", {})


def each(
  net: nn.Module,
  students: Variables,
  x: Float[Array, "N B ..."],
  key: Key[Array, ""] | None = None,
  *,
  train: bool = False,
) -> tuple[Any, PyTree]:
  """Runs student n on x[n]: (outputs [N, ...], stacked batch statistics).

  No convolution becomes a grouped one, see `nn.convolution`.
  """
  keys = None if key is None else jax.random.split(key, x.shape[0])
  networks = jax.vmap(lambda v, x, k: _run(net, v, x, k, train))
  return execution.current().split(networks, x.shape[0])(students, x, keys)


def mix(students: Variables, weights: Float[Array, " N"]) -> Variables:
  """The variables sum_m r_m theta_m of one network: `hybridize`, by the current `Execution`."""
  return execution.current().sum(hybridize, len(weights))(students, weights)


def shared_input(x: Float[Array, "B ..."], n: int) -> Float[Array, "N B ..."]:
  """One input for N students, not copied under jit."""
  return jnp.broadcast_to(x, (n, *x.shape))


def _own_layers(call, args, kwargs, context):
  """Intercepts Flax's layers, to compute them faster and by the current `Execution`."""
  module = context.module
  if context.method_name == "__call__":
    how = execution.current()
    if how.dtype is not None and isinstance(module, nn.Conv | nn.Dense) and not module.dtype:
      object.__setattr__(module, "dtype", how.dtype)  # a frozen dataclass
    if isinstance(module, nn.Conv):
      if how.compute == "products" and module.precision is None:
        object.__setattr__(module, "precision", "bfloat16")
      object.__setattr__(module, "conv_general_dilated", conv_general_dilated)
    elif type(module) is nn.BatchNorm and is_plain(module, *args, **kwargs):
      return batch_norm(module, args[0])
    elif not type(module).__module__.startswith("flax."):
      return convolution_cpu.materialize(call(*args, **kwargs))
  return call(*args, **kwargs)
