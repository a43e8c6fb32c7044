"""Batch statistics re-estimated as means over the images of one pass over the data.

Those of `BatchNorm`, of Linen and NNX; other layers' statistics stay as training left them.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, TypeVar
from unittest import mock

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jaxtyping import Array

from okdph_jax.core import Learner, Views
from okdph_jax.runtime import host

T = TypeVar("T")


def over_a_pass(
  update: Callable[[Learner, Views, Array], Learner],
) -> Callable[[Learner, Iterable[Views]], Learner]:
  """`run(learner, batches)`, which applies `update(learner, views, seen)` to every batch.

  `seen` is the number of images in the batches before.
  """

  @cache  # compiled in the first pass: a method is built before JAX's backend starts
  def compiled():
    return jax.jit(update, compiler_options=host.compiler_options())

  def run(learner, batches):
    seen = 0
    for views in batches:
      learner = compiled()(learner, views, jnp.int32(seen))
      seen += len(views.label)
    return learner

  return run


def with_mean_statistics(forward: Callable[[], T], seen: Array, batch: int) -> T:
  """Calls `forward` with running statistics that become means over all images so far.

  `forward` runs networks in training mode on the next `batch` images, after `seen` others; with
  seen = 0 earlier statistics have no effect. A layer that runs several times per batch, as
  PCL's stem does once per view, gets the mean over all its runs.
  """
  runs: list[int] = []  # how often each layer runs on a batch
  with _momenta(lambda layer, run: 0.0, runs):
    jax.eval_shape(forward)

  def momentum(layer, run):
    before = runs[layer] * seen + run * batch
    return before / (before + batch)

  with _momenta(momentum, []):
    return forward()


@contextlib.contextmanager
def _momenta(momentum: Callable[[int, int], Any], runs: list[int]) -> Iterator[None]:
  """Every `BatchNorm` of Linen or NNX uses `momentum(layer, run)`, both from 0, in this thread.

  Counts in runs[layer] how often each layer runs. A layer runs again when it reads the running
  mean that one of its runs wrote.
  """
  left = {}  # id of a running mean -> (the mean itself, which keeps its id in use, layer, runs)

  def with_momentum(module, mean, call):
    before = mean()
    _, layer, run = left.get(id(before), (before, len(runs), 0))
    if layer == len(runs):
      runs.append(0)
    own = module.momentum
    object.__setattr__(module, "momentum", momentum(layer, run))
    y = call()
    object.__setattr__(module, "momentum", own)  # NNX refuses to split a module with an array
    after = mean()
    runs[layer] = max(runs[layer], run + (after is not before))
    left[id(after)] = after, layer, run + 1
    return y

  def linen(call, args, kwargs, context):
    module = context.module
    if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
      return call(*args, **kwargs)
    mean = partial(module.get_variable, "batch_stats", "mean")
    return with_momentum(module, mean, partial(call, *args, **kwargs))

  original, thread = nnx.BatchNorm.__call__, threading.get_ident()

  def of_nnx(module, *args, **kwargs):  # which has no interceptors
    call = partial(original, module, *args, **kwargs)
    if threading.get_ident() != thread:  # another one may compile a step meanwhile
      return call()
    return with_momentum(module, lambda: module.mean[...], call)

  with nn.intercept_methods(linen), mock.patch.object(nnx.BatchNorm, "__call__", of_nnx):
    yield
