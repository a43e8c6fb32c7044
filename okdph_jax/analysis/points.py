"""Loss and accuracy at many points of parameter space: compiled once, on all devices."""

import functools
import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, Float64, Int, Key, PyTree

from okdph_jax.analysis.progress import Progress
from okdph_jax.core import Variables
from okdph_jax.losses import accuracy, cross_entropy
from okdph_jax.methods.statistics import with_mean_statistics
from okdph_jax.nn.students import run
from okdph_jax.runtime import host

SAVE_EVERY = 20.0  # seconds between two saves of an unfinished sweep

T = TypeVar("T")


class Images(NamedTuple):
  """Normalised images in S batches of one size, on which a network is measured."""

  image: Float[Array, "S B H W C"]
  label: Int[Array, "S B"]


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """`jax.jit` with the compiler options of the host, asked for at the first call."""

  def decorate(function):
    @functools.cache
    def program():
      return jax.jit(function, compiler_options=host.compiler_options(), **options)

    return functools.wraps(function)(lambda *args, **kwargs: program()(*args, **kwargs))

  return decorate


def once_per_network(build: Callable[[nn.Module], T]) -> Callable[[nn.Module], T]:
  """`build(net)`, called once for equal networks, so that they share one compilation."""
  cached = functools.cache(build)

  def built(net):
    try:
      return cached(net)
    except TypeError:  # a stranger's module with fields that have no hash
      return build(net)

  return functools.wraps(build)(built)


@once_per_network
def _network_loss(net):
  def loss(stats, params, batch):
    logits, _ = run(net, {"params": params, "batch_stats": stats}, batch.image)
    return cross_entropy(logits, batch.label)

  return loss


@once_per_network
def _network_accuracy(net):
  def rate(stats, params, batch):
    logits, _ = run(net, {"params": params, "batch_stats": stats}, batch.image)
    return accuracy(logits, batch.label)

  return rate


def network_loss(net: nn.Module, batch_stats: PyTree) -> Partial:
  """`loss(params, batch: Images)`: the cross-entropy of a network whose statistics stay."""
  return Partial(_network_loss(net), batch_stats)


def network_accuracy(net: nn.Module, batch_stats: PyTree) -> Partial:
  """`accuracy(params, batch: Images)` of a network whose statistics stay."""
  return Partial(_network_accuracy(net), batch_stats)


def as_tree(function: Callable[..., Any]) -> Partial:
  """A function that compiled functions take as an argument; equal ones compile once."""
  return function if isinstance(function, Partial) else Partial(function)


def mean_over(function: Callable[..., PyTree], batches: PyTree | None) -> PyTree:
  """The mean of `function(batch)`, a tree, over batches stacked on a first axis [S, ...].

  One batch at a time: the memory is that of one. With `batches=None` it is `function()`.
  """
  if batches is None:
    return function()
  first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))
  count = len(jax.tree.leaves(batches)[0])

  def add(total, batch):
    return jax.tree.map(jnp.add, total, function(batch)), None

  total, _ = lax.scan(add, zeros, batches)
  return jax.tree.map(lambda x: x / count, total)


def mean_of_calls(function: Callable[..., PyTree], batches: PyTree | None) -> PyTree:
  """As `mean_over`, by one call of a compiled `function` for each batch.

  For gradients: in a loop of XLA:CPU's, those of convolutions are some twenty times slower.
  """
  if batches is None:
    return function()
  results = [function(batch) for batch in unstacked(batches)]
  return jax.tree.map(lambda *xs: sum(xs) / len(results), *results)


def perturbed(key: Key[Array, ""], params: PyTree, sigma: Any, *, relative: bool) -> PyTree:
  """params + N(0, sigma^2), or where `relative` N(0, sigma^2 |w|^2), element by element."""
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  moved = [
    w + sigma * jax.random.normal(k, w.shape, w.dtype) * (jnp.abs(w) if relative else 1)
    for k, w in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, moved)


def unstacked(batches: PyTree) -> list[PyTree]:
  """The batches one by one, each split over the devices as it is in the stack."""
  count = len(jax.tree.leaves(batches)[0])  # iterating over an array would gather it on one
  return [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(count)]


def measure(net: nn.Module, variables: Variables, images: Images) -> dict[str, Array]:
  """Cross-entropy in nats and accuracy of one network: {"loss": [], "accuracy": []}."""

  def one(batch):
    logits, _ = run(net, variables, batch.image)
    return {
      "loss": cross_entropy(logits, batch.label),
      "accuracy": accuracy(logits, batch.label),
    }

  return mean_over(one, images)


def reestimate(
  net: nn.Module, variables: Variables, image: Float[Array, "S B H W C"]
) -> Variables:
  """The network with new batch statistics: the mean over the batches."""
  if not variables["batch_stats"]:
    return variables

  def absorb(stats, item):
    i, image = item
    network = variables | {"batch_stats": stats}

    def forward():
      return run(net, network, image, jax.random.key(0), train=True)[1]

    return with_mean_statistics(forward, i, 1), None  # every batch counts the same

  count = jnp.arange(len(image), dtype=image.dtype)
  stats, _ = lax.scan(absorb, variables["batch_stats"], (count, image))
  return variables | {"batch_stats": stats}


def sweep(
  function: Callable[[Any, Any], dict[str, Array]],
  context: PyTree,
  points: PyTree,
  *,
  per_device: int = 4,
  partial_dir: str | os.PathLike[str] | None = None,
  title: str = "points",
) -> tuple[dict[str, Float64[np.ndarray, " P"]], float]:
  """`function(context, point)` at every point, and the speed.

  points: a tree of arrays [P, ...]. The points are split over all devices, and each device
  takes its own one after another: the memory is that of one point per device, whatever P.
  The same function with other values of the same shapes is not compiled again.
  With `partial_dir`, an interrupted sweep goes on where it stopped, and one that took long is
  not computed again; the caller removes this folder. `speed` is points per second after the
  first chunk, which compiles; NaN where there was no other.
  """
  points = jax.tree.map(np.asarray, points)
  total = len(jax.tree.leaves(points)[0])
  mesh = host.mesh()
  chunks = -(-total // (per_device * mesh.size))
  size = -(-total // (chunks * mesh.size)) * mesh.size  # of each, so that little is filled up

  program = _chunk(function)
  partial_file = Path(partial_dir, f"{_digest(context, points)}.npz") if partial_dir else None
  context = jax.device_put(context, NamedSharding(mesh, PartitionSpec()))

  def part(start):
    chosen = np.minimum(np.arange(start, start + size), total - 1)  # the last is filled up
    return jax.tree.map(lambda x: x[chosen], points)

  done = _read_partial(partial_file)
  first = start = len(next(iter(done.values()))) if done else 0
  started = saved = time.monotonic()
  with Progress(title, total, "point", done=start) as bar:
    while start < total:
      values = jax.device_get(program(context, part(start)))
      count = min(size, total - start)
      for name, value in values.items():
        new = value[:count].astype(np.float64)
        done[name] = np.concatenate([done[name], new]) if name in done else new
      if start == first:  # compiled now
        began = time.monotonic()
      start += count
      bar.update(count)
      late = time.monotonic() - saved > SAVE_EVERY or start == total and saved > started
      if partial_file and late:
        _write_partial(partial_file, done)
        saved = time.monotonic()
  timed = -(-(total - first) // size) - 1  # chunks, each of which computes `size` points
  return done, timed * size / (time.monotonic() - began) if timed > 0 else np.nan


@functools.cache
def _chunk(function):
  mapped = jax.shard_map(
    lambda context, points: lax.map(functools.partial(function, context), points),
    mesh=host.mesh(),
    in_specs=(PartitionSpec(), PartitionSpec("data")),
    out_specs=PartitionSpec("data"),
    check_vma=False,  # nothing is summed over the devices
  )
  return jax.jit(mapped, compiler_options=host.compiler_options())


@once_per_network
def _evaluation(net):
  return compiled()(functools.partial(measure, net))


def plain_speed(
  net: nn.Module, variables: Variables, images: Images, seconds: float = 2.0
) -> float:
  """Images per second of plain evaluation; every batch lies as `images` does on the devices."""
  mesh = host.mesh()
  variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  evaluate = _evaluation(net)
  jax.block_until_ready(evaluate(variables, images))
  rounds, began = 0, time.monotonic()
  while time.monotonic() - began < seconds:
    jax.block_until_ready(evaluate(variables, images))
    rounds += 1
  return rounds * images.label.size / (time.monotonic() - began)


def speed_note(
  points: float, seen: int, net: nn.Module, variables: Variables, images: Images
) -> str:
  """How fast a sweep over points was, `seen` images each, beside plain evaluation."""
  if np.isnan(points):
    return "too few points to measure how fast they were"
  plain, rate = plain_speed(net, variables, images), points * seen
  return (
    f"{points:.3g} points per second of {seen:,} images: {rate:,.0f} images per second, "
    f"{rate / plain:.0%} of plain evaluation's {plain:,.0f}"
  )


def _digest(context, points):
  """A sweep's identity: a digest of the points and of what they are points of."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves((context, points)):
    leaf = np.asarray(leaf)
    digest.update(str((leaf.shape, leaf.dtype)).encode())
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()


def _read_partial(path):
  try:
    with np.load(path or "") as file:
      return dict(file)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):  # none yet, or torn
    return {}


def _write_partial(path, done):
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
  np.savez(temporary, **done)
  os.replace(temporary, path)
