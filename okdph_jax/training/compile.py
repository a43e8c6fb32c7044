"""Compiling the step: once for the full batch and once for the short one, and what it costs."""

import functools
import time

import jax

from okdph_jax.runtime import host
from okdph_jax.training.step import initial_state, train_step


def compile_steps(experiment, shapes, key, everywhere):
  """The initial state, {batch size: compiled step} of the full and the short batch, FLOPs."""
  parts = experiment.method, experiment.tx, experiment.augment
  example = next(iter(shapes.values()))
  began = time.monotonic()
  state = jax.jit(
    lambda key: initial_state(*parts, example, key),
    out_shardings=everywhere,
    compiler_options=host.fast_compile_options(),
  )(key)
  step = jax.jit(
    functools.partial(train_step, *parts),
    donate_argnums=0,
    out_shardings=everywhere,
    compiler_options=host.compiler_options(),
  )
  traced = {size: step.trace(state, batch, key) for size, batch in shapes.items()}
  advance = {size: program.lower().compile() for size, program in traced.items()}
  seconds, size = time.monotonic() - began, len(example.label)
  flops = flops_of(traced[size], functools.partial(train_step, *parts), state, example, key)
  flops = flops and flops / size
  known = f"; {flops / 1e9:.3g} GFLOP per training image" if flops else ""
  print(f"compiled in {seconds:.0f} s{known}", flush=True)
  return state, advance, flops


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
