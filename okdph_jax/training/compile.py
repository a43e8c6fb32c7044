"""Compiling the step: once for the full batch and once for the short one, and what it costs."""

import functools
import time
from typing import NamedTuple

import jax

from okdph_jax.runtime import host
from okdph_jax.training.step import State, initial_state, train_step


class Compiled(NamedTuple):
  """The step as it runs."""

  state: State  # the initial one
  advance: dict  # {batch size: (state, batch, key) -> (state, metrics)}; state is donated
  flops: float | None  # of a step of the full batch, per image
  seconds: float  # that tracing and compiling took


def compile_steps(parts, shapes, key):
  """Compiles the train step for every batch size.

  parts: (method, tx, augment), as `train_step` takes them. shapes: {size: Batch} of shapes
  with shardings, the full batch first. The state is placed as `key` is.
  """
  example = next(iter(shapes.values()))
  state = jax.jit(
    lambda key: initial_state(*parts, example, key),
    out_shardings=key.sharding,
    compiler_options=host.fast_compile_options(),
  )(key)
  step = functools.partial(train_step, *parts)
  jitted = jax.jit(
    step,
    donate_argnums=0,
    out_shardings=key.sharding,
    compiler_options=host.compiler_options(),
  )
  began = time.monotonic()
  traced = {size: jitted.trace(state, batch, key) for size, batch in shapes.items()}
  advance = {size: program.lower().compile() for size, program in traced.items()}
  seconds = time.monotonic() - began
  size = len(example.label)
  flops = flops_of(traced[size], step, state, example, key)
  return Compiled(state, advance, flops and flops / size, seconds)


def flops_of(traced, function, *arguments):
  """FLOPs of a traced program, all devices together; None where nobody can tell.

  By XLA's cost analysis of what is to be computed, before it is compiled: what a compiler
  computes twice, or hands to a library, does not change it, nor does how `convolution_cpu`
  puts a sum, because it is lowered as for another platform. Products with a convolution's
  padding do not count. JAX has the analysis for the CPU alone.
  """
  plain = {"lowering_platforms": ("tpu",)}
  cost = traced.lower(**plain).cost_analysis()
  if cost is None:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    try:
      with jax.default_device(jax.local_devices(backend="cpu")[0]):
        cost = jax.jit(function).trace(*shapes).lower(**plain).cost_analysis()
    except RuntimeError:  # JAX_PLATFORMS may leave the CPU out
      return None
  return cost["flops"]
