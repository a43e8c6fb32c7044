"""Evaluates a learner: accuracy and cross-entropy of every reader on every split."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from okdph_jax.core import Batch, Learner, Views
from okdph_jax.data import Dataset
from okdph_jax.losses import cross_entropy
from okdph_jax.methods.protocol import Method
from okdph_jax.runtime import host
from okdph_jax.runtime.signals import Interrupted
from okdph_jax.training.compile import Ahead, abstract
from okdph_jax.training.step import Augment

EVALUATION_BATCH = 500  # images

Measured = dict[str, dict[str, float]]  # {split: {reader: number}}
Count = Callable[[Learner, Batch, Bool[Array, " B"], Key[Array, ""]], dict[str, Any]]


def compiled_counter(experiment: Any) -> Ahead:
  """The `counter` of an experiment, to be compiled ahead of time for each batch size."""
  return Ahead(
    counter(experiment.method, experiment.test_view),
    size_of=lambda learner, batch, mask, key: len(mask),
  )


def evaluator(
  count: Ahead,
  dataset: Dataset,
  experiment: Any,
  batch: Callable[[int], Batch],
  key: Key[Array, ""],
  learner: Learner,
  interrupted: Callable[[], bool],
  thread: Executor,
) -> Callable[[Learner], tuple[Measured, Measured, Learner]]:
  """Builds `measure(learner) -> (accuracy, cross-entropy, the learner that was evaluated)`.

  count: see `compiled_counter`; `thread` starts to compile it here.
  batch: (step) -> training batch, for methods that use training images before an evaluation.
  learner: only its shapes and shardings are used.
  interrupted: once it returns True, `measure` raises `Interrupted`.
  """
  place: Any = key.sharding
  augment = jax.jit(experiment.augment, compiler_options=host.compiler_options())
  splits = {"test": dataset.test}
  if dataset.validation:
    splits["validation"] = dataset.validation
  key_test, key_train = jax.random.split(jax.random.fold_in(key, 2**31 - 2))  # not a step's key

  sizes = {}
  for name, split in splits.items():
    size = -(-min(EVALUATION_BATCH, len(split)) // place.mesh.size) * place.mesh.size
    shapes = split.padded_shapes(size, mesh=place.mesh)
    count.compile(thread, abstract(learner), *shapes, jax.random.fold_in(key_test, 0))
    sizes[name] = size

  def until_interrupted(batches):
    for item in batches:
      if interrupted():
        raise Interrupted("interrupted during an evaluation; the same command resumes the run")
      yield item

  def training_views():
    for i in range(experiment.epoch_steps):
      image, label = batch(i)
      yield Views(augment(jax.random.fold_in(key_train, i), image), label)

  def measure(learner):
    training_set = Repeated(lambda: until_interrupted(training_views()))
    learner = experiment.method.before_eval(learner, training_set)
    learner = jax.device_put(learner, host.layout(lambda: learner, place.mesh))
    accuracy, nll = {}, {}
    for name, split in splits.items():
      batches = until_interrupted(split.padded(sizes[name], mesh=place.mesh))
      accuracy[name], nll[name] = evaluate(count, learner, batches, key_test)
    return accuracy, nll, learner

  return measure


@dataclasses.dataclass(frozen=True)
class Repeated:
  """An iterable that calls `start` for each new iteration."""

  start: Callable[[], Iterator[Views]]

  def __iter__(self) -> Iterator[Views]:
    return self.start()


def counter(
  method: Method, augment: Augment, compiler_options: dict[str, Any] | None = None
) -> Count:
  """Builds the jitted `count(learner, batch, mask, key) -> {reader: {"right", "nll"}}`.

  "right" is the number of correct predictions, "nll" the sum of the cross-entropy in nats, both
  where `mask` is True: it is False for padding. `augment` computes the test view.
  """

  def count(learner, batch, mask, key):
    image = augment(key, batch.image)[0]
    readers = method.predict(learner, image) | method.ensembles(learner, image)

    def one(logits):
      nll = jax.vmap(lambda z, y: cross_entropy(z[None], y[None]))(logits, batch.label)
      right = (logits.argmax(-1) == batch.label) & mask
      return {"right": right.sum(), "nll": jnp.where(mask, nll, 0.0).sum()}

    return {name: one(logits) for name, logits in readers.items()}

  return jax.jit(count, compiler_options=compiler_options)


def evaluate(
  count: Count,
  learner: Learner,
  batches: Iterable[tuple[Batch, Bool[Array, " B"]]],
  key: Key[Array, ""],
) -> tuple[dict[str, float], dict[str, float]]:
  """({reader: accuracy}, {reader: mean cross-entropy in nats}) over (batch, mask) pairs.

  key: for a random test view, such as the release's noisy one; batch i folds i into it.
  """
  sums, total = None, 0
  for i, (batch, mask) in enumerate(batches):
    part = count(learner, batch, mask, jax.random.fold_in(key, i))
    sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    total += int(mask.sum())
  means = jax.tree.map(lambda s: float(s) / total, sums)
  return {r: m["right"] for r, m in means.items()}, {r: m["nll"] for r, m in means.items()}
