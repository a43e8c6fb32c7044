"""Evaluates trained networks: accuracy, cross-entropy, calibration, confusion matrix."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax

from okdph_jax import data as datasets
from okdph_jax import views
from okdph_jax.data import Dataset, Split
from okdph_jax.experiment.config import default
from okdph_jax.run import Run
from okdph_jax.runtime import host
from okdph_jax.training import checkpoint
from okdph_jax.training.evaluate import EVALUATION_BATCH

BINS = 15  # of the calibration error


class Evaluation(NamedTuple):
  """The evaluation of one reader of a run on one split of a dataset."""

  reader: str  # "student_0", "hybrid", ...
  checkpoint: str  # "last, step 460"
  dataset: str  # "digits, test: 355 images"
  class_names: tuple[str, ...]
  accuracy: float  # the fraction of images whose label has the highest logit
  cross_entropy: float  # mean of -log p(label), in nats
  calibration_error: float  # expected calibration error, see `calibration_error`
  per_class: Float[np.ndarray, " K"]  # accuracy on the images of each class; NaN where none
  confusion: Int[np.ndarray, "K K"]  # images of class (row) predicted as class (column)


def evaluate(
  workdir: str | os.PathLike[str],
  reader: str | None = None,
  *,
  which: str | None = None,
  data: Mapping[str, Any] | None = None,
  split: str = "test",
  network: str | None = None,
) -> Evaluation:
  """Evaluates one reader of a run, by default on the run's test set.

  reader: "student_0", "hybrid", "ensemble", ...; by default that of `load(workdir)`. Other
  arguments: see `evaluate_all`.

      >>> found = evaluate(workdir, "student_0")
      >>> found.dataset, int(found.confusion.sum())
      ('arrays, test: 16 images', 16)
      >>> 0 <= found.accuracy <= 1
      True

  Raises:
    ValueError: in one line, for an unknown run or reader, or a dataset that does not fit.
  """
  reader = reader or Run(workdir).network(None, which, network).reader
  found = evaluate_all(workdir, which=which, data=data, split=split, network=network)
  if reader not in found:
    raise ValueError(
      f"the run in {workdir} has no reader {reader!r}; it has {', '.join(found)}"
    )
  return found[reader]


def evaluate_all(
  workdir: str | os.PathLike[str],
  *,
  which: str | None = None,
  data: Mapping[str, Any] | None = None,
  split: str = "test",
  network: str | None = None,
) -> dict[str, Evaluation]:
  """Evaluates all readers of a run, ensembles included: {reader: `Evaluation`}.

  which: the checkpoint, see `Run.chosen`. data: options of `config.data` that differ from the
  run's, e.g. {"name": "arrays", "dir": "photos.npz"}; the images must have the run's shape and
  classes; they are normalised as in the run. split: "test", "validation" or "train".
  network: the run's own network by dotted path, see `Run.network`.

  Raises:
    ValueError: in one line, for an unknown run, or a dataset that does not fit.
  """
  run = Run(workdir)
  which, step = run.chosen(which)
  run.network(None, which, network)  # raises ValueError if it cannot be read
  _, method = run.method(network)
  config, names = run.require_config(), run.class_names
  dataset, images = dataset_for(run, data, split)
  normal = config["data"]["normalisation"]
  look = views.make((config["test_view"],), normal["mean"], normal["std"])

  @jax.jit
  def logits(learner, image, key):
    seen = look(key, image)[0]
    return method.predict(learner, seen) | method.ensembles(learner, seen)

  learner, mesh = checkpoint.learner_at(run.path, step), host.mesh()
  size = -(-min(EVALUATION_BATCH, len(images)) // mesh.size) * mesh.size
  key = jax.random.fold_in(jax.random.key(config["seed"]), 2**31 - 2)
  key, _ = jax.random.split(key)  # as in training, so that a noisy test view has equal noise
  rows, labels = {}, []  # rows: {reader: [logits of each batch]}
  for i, (batch, mask) in enumerate(images.padded(size, mesh=mesh)):
    kept = np.asarray(mask)
    labels.append(np.asarray(batch.label)[kept])
    for name, z in logits(learner, batch.image, jax.random.fold_in(key, i)).items():
      rows.setdefault(name, []).append(np.asarray(z)[kept])
  labels = np.concatenate(labels)
  about = f"{which}, step {step}", f"{dataset.name}, {split}: {len(labels):,} images"
  return {
    name: measure(np.concatenate(parts), labels, names, name, *about)
    for name, parts in rows.items()
  }


def dataset_for(
  run: Run, changes: Mapping[str, Any] | None = None, split: str = "test"
) -> tuple[Dataset, Split]:
  """(dataset, split of it) of a run. changes: options of `config.data` that differ.

  Raises:
    ValueError: in one line, if the images do not fit the run's networks.
  """
  config, changes, own = run.require_config(), dict(changes or {}), default().data
  if changes.get("name", config["data"]["name"]) == config["data"]["name"]:
    own.update({name: config["data"][name] for name in own if name in config["data"]})
  own.update(changes)
  dataset = datasets.load(ml_collections.ConfigDict({"data": own}))
  images = {"test": dataset.test, "validation": dataset.validation, "train": dataset.train}
  if images.get(split) is None:
    there = [name for name, part in images.items() if part is not None]
    raise ValueError(f"{dataset.name} has no split {split!r}; there are {', '.join(there)}")
  shape, wanted = tuple(images[split].image_shape), tuple(config["data"]["image"])
  if shape != wanted:
    raise ValueError(
      f"{dataset.name} has images {list(shape)}, the run in {run.path} needs {list(wanted)}; "
      "set data.image_size"
    )
  if dataset.classes != len(run.class_names):
    raise ValueError(
      f"{dataset.name} has {dataset.classes} classes, the run in {run.path} has "
      f"{len(run.class_names)}; choose a dataset with the same classes"
    )
  there, own = dataset.class_names, run.class_names
  numbers = tuple(map(str, range(len(own))))  # the names of classes that have none
  if there != own and numbers not in (there, own):
    i = next(i for i, name in enumerate(own) if there[i] != name)
    raise ValueError(
      f"class {i} is {there[i]!r} in {dataset.name} and {own[i]!r} in the run in {run.path}; "
      "choose a dataset with the same classes in the same order"
    )
  return dataset, images[split]


def measure(
  logits: Float[np.ndarray, "N K"],
  labels: Int[np.ndarray, " N"],
  class_names: Sequence[str],
  reader: str = "",
  checkpoint: str = "",
  dataset: str = "",
) -> Evaluation:
  """The `Evaluation` of logits. The strings are copied into it."""
  from sklearn.metrics import confusion_matrix

  log_p = log_softmax(np.asarray(logits, np.float64), axis=-1)
  chosen = logits.argmax(-1)
  confusion = confusion_matrix(labels, chosen, labels=np.arange(len(class_names)))
  counts = confusion.sum(1)
  return Evaluation(
    reader=reader,
    checkpoint=checkpoint,
    dataset=dataset,
    class_names=tuple(class_names),
    accuracy=float((chosen == labels).mean()),
    cross_entropy=float(-log_p[np.arange(len(labels)), labels].mean()),
    calibration_error=calibration_error(np.exp(log_p.max(-1)), chosen == labels),
    per_class=np.where(counts, confusion.diagonal() / np.maximum(counts, 1), np.nan),
    confusion=confusion,
  )


def calibration_error(
  confidence: Float[np.ndarray, " N"], right: Bool[np.ndarray, " N"]
) -> float:
  """Expected calibration error (Guo et al., ICML 2017, arXiv:1706.04599), in [0, 1].

      sum_b n_b / n |mean(right in b) - mean(confidence in b)|

  over 15 bins of equal width of the confidence, i.e. the highest probability.
  """
  bin_of = np.ceil(np.asarray(confidence) * BINS).clip(1, BINS).astype(int) - 1
  gaps = np.bincount(bin_of, np.asarray(right, float) - confidence, BINS)
  return float(np.abs(gaps).sum() / len(confidence))
