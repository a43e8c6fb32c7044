"""Compiles the step before the run starts, and other programs while the first steps run."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree

from okdph_jax.core import Batch
from okdph_jax.methods.protocol import Method, Metrics
from okdph_jax.runtime import host, memory
from okdph_jax.training import stack
from okdph_jax.training.step import (
  Augment,
  State,
  added,
  train_step,
  without_sums,
  zero_sums,
)

Parts = Callable[[Any], tuple[Method, optax.GradientTransformation]]
Batches = tuple[Any, ...]  # one per step: a `Batch`, or of S runs a tuple of S batches
Advanced = tuple[State, tuple[Metrics, ...]]  # the state after the steps, the metrics of each
Advance = Callable[[State, Batches, Key[Array, ""]], Advanced]


@contextlib.contextmanager
def background() -> Iterator[futures.ThreadPoolExecutor]:
  """A thread for compilations; those not yet started are cancelled at the end."""
  thread = futures.ThreadPoolExecutor(1, "compile")
  try:
    yield thread
  finally:
    thread.shutdown(wait=False, cancel_futures=True)


class Compiled(NamedTuple):
  """The compiled training step of a run."""

  state: State  # the initial state
  advance: Advance  # takes one batch, or `per_dispatch` full ones; donates the state
  flops: futures.Future[float | None]  # of a step on the full batch, per image
  seconds: float  # that compiling the step for the full batch took


class Ahead:
  """A jitted function that is compiled ahead of time, for each size of its arguments."""

  def __init__(self, jitted: Any, size_of: Callable[..., Any]):
    self._jitted, self._size_of, self._programs = jitted, size_of, {}

  def compile(self, thread: futures.Executor, *arguments: Any) -> futures.Future[Any]:
    """Starts to compile for these shapes and shardings; a future of (traced, compiled)."""

    def work():
      traced = self._jitted.trace(*arguments)
      return traced, traced.lower().compile()

    size = self._size_of(*arguments)
    if size not in self._programs:
      self._programs[size] = thread.submit(work)
    return self._programs[size]

  def program(self, *arguments: Any) -> Any:
    """The `jax.stages.Compiled` for arguments of this size."""
    return self._programs[self._size_of(*arguments)].result()[1]

  def __call__(self, *arguments: Any) -> Any:
    return self.program(*arguments)(*arguments)


def compile_steps(
  parts: Parts,
  numbers: Any,
  augment: Augment,
  shapes: dict[int, Batch],
  key: Key[Array, ""],
  thread: futures.Executor,
  per_dispatch: int = 1,
  **options: Any,
) -> Compiled:
  """Compiles the training step: for the full batch at once, for a short last one in `thread`.

  parts: `numbers -> (method, tx)`, see `train_step`. Numbers other than 0 and 1 are arguments
    of the compiled step, so that runs with other values find it in the compilation cache.
  shapes: {size: shapes and shardings of a batch}, the full batch first.
  key: of the run. The state is on the devices of its mesh, see `host.layout`. With keys [S], S
    runs are compiled as one program: every leaf of the state but `step` is stacked, a step
    takes a tuple of S batches, and metrics are [S], see `stack`.
  per_dispatch: the number of steps on full batches that one call of the program makes; if
    there are several, the program of a single step is compiled in `thread`.
  options: of `train_step`.
  """
  began = time.monotonic()
  full, *short = shapes
  sharding: Any = key.sharding
  mesh = sharding.mesh
  place = NamedSharding(mesh, PartitionSpec())
  given, step = with_arguments(parts, numbers, augment, **options)
  given = jax.jit(lambda: given, out_shardings=place)()  # `device_put` fails here in a pod
  batches: dict[int, Any] = dict(shapes)  # of all runs

  def initial(key):
    return without_sums(*parts(numbers), augment=augment, batch=shapes[full], key=key)

  if key.ndim:
    initial, step = jax.vmap(initial, out_axes=stack.AXES), stack.over_runs(step)
    batches = {size: (batch,) * key.size for size, batch in shapes.items()}
  state = jax.jit(
    initial,
    out_shardings=host.layout(lambda: jax.eval_shape(initial, key), mesh),
    compiler_options=host.fast_compile_options(),
  )(key)
  zeros = zero_sums(functools.partial(step, given), state, batches[full], key)
  state = state.replace(sums=jax.jit(lambda: zeros, out_shardings=place)())
  jitted = jax.jit(
    in_turn(step),
    donate_argnums=1,
    out_shardings=(host.layout(lambda: state, mesh), place),
    compiler_options=host.compiler_options(),
  )
  steps = Ahead(jitted, size_of=lambda given, state, batches, key: shape_of(batches))
  compiled = steps.compile(thread, given, state, (batches[full],) * per_dispatch, key)
  compiled.result()
  memory.return_freed()
  seconds = time.monotonic() - began
  like = abstract(state)
  if per_dispatch > 1:
    compiled = steps.compile(thread, given, like, (batches[full],), key)
  for size in short:
    steps.compile(thread, given, like, (batches[size],), key)
  arguments = given, like, batches[full], key
  flops = thread.submit(
    lambda: per_image(flops_of(compiled.result()[0], step, *arguments), full * key.size)
  )
  return Compiled(state, functools.partial(steps, given), flops, seconds)


def with_arguments(
  parts: Parts, numbers: Any, augment: Augment, **options: Any
) -> tuple[Any, Callable[..., tuple[State, Metrics]]]:
  """(arguments, step): `step(arguments, state, batch, key)` is `train_step` of these numbers.

  The arguments are the numbers other than 0 and 1; those two stay constants of the program.
  """
  fixed = jax.tree.map(lambda number: number if number in (0, 1) else None, numbers)
  given = jax.tree.map(lambda number: None if number in (0, 1) else number, numbers)

  @functools.partial(jax.jit, inline=True)  # jit caches the trace, which takes a second
  def core(given, state, batch, key):
    numbers = jax.tree.map(
      lambda number, argument: argument if number is None else number,
      *(fixed, given),
      is_leaf=lambda number: number is None,
    )
    method, tx = parts(numbers)
    return train_step(method, tx, augment, state, batch, key, **options)

  def step(given, state, batch, key):
    new, metrics = core(given, state.replace(sums={}), batch, key)
    return new.replace(sums=added(state.sums, metrics)), metrics

  return given, step


def in_turn(step: Callable[..., tuple[State, Metrics]]) -> Callable[..., Advanced]:
  """`steps(arguments, state, batches, key)`: a step for each batch, all of one size."""

  def steps(given, state, batches, key):
    if len(batches) == 1:
      state, metrics = step(given, state, batches[0], key)
      return state, (metrics,)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    state, metrics = jax.lax.scan(lambda s, batch: step(given, s, batch, key), state, stacked)
    each = [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(len(batches))]
    return state, tuple(each)

  return steps


def shape_of(batches: Batches) -> tuple[int, int]:
  """(number of batches, images in each)."""
  return len(batches), images(batches[0])


def images(batch: Batch | tuple[Batch, ...]) -> int:
  """The number of images in the batch of one run."""
  return len((batch if isinstance(batch, Batch) else batch[0]).label)


def abstract(tree: PyTree) -> PyTree:
  """The shapes, dtypes and shardings of a tree of arrays, to keep when those are donated."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def per_image(flops: float | None, size: int) -> float | None:
  return flops and flops / size


def flops_of(traced: Any, function: Callable[..., Any], *arguments: Any) -> float | None:
  """FLOPs of a traced program on all devices together; None if they cannot be counted.

  From XLA's cost analysis before compilation, so recomputation and library calls do not change
  the result. The program is lowered for another platform, because on a CPU `convolution_cpu`
  writes convolutions differently. Products with a convolution's padding do not count.
  """
  plain = dict[str, Any](lowering_platforms=("tpu",))
  try:
    cost = traced.lower(**plain).cost_analysis()
    if cost is None:
      shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
      with jax.default_device(jax.local_devices(backend="cpu")[0]):
        cost = jax.jit(function).trace(*shapes).lower(**plain).cost_analysis()
  except Exception:  # JAX_PLATFORMS excludes the CPU, a callback has no version for a TPU, ...
    return None  # a run does not fail for a number that it only reports
  return cost and cost["flops"]
