"""The log of a run: metrics.jsonl, training.jsonl, TensorBoard events, and result.json.

TensorFlow is imported only when events are written.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from okdph_jax.errors import DiskError, disk_full, one_line
from okdph_jax.runtime import distributed, host


class Logbook(AbstractContextManager):
  """Writes evaluations to metrics.jsonl and as TensorBoard events.

  run: an `okdph_jax.Run`.
  """

  def __init__(self, run: Any):
    self._run = run

  def append(
    self,
    *,
    step: int,
    epoch: float,
    learning_rate: float,
    losses: Mapping[str, float],
    accuracy: Mapping[str, Mapping[str, float]],
    cross_entropy: Mapping[str, Mapping[str, float]],
    seconds: float,
    images_per_second: float,
    **more: Any,
  ) -> dict[str, Any]:
    """Writes one evaluation, and returns it as the line in the file.

    Args:
      step: steps done.
      epoch: epochs done.
      learning_rate: of the last step.
      losses: {name: mean since the last line}.
      accuracy: {"test": {reader: fraction}}, and the same for "validation" if there is one.
      cross_entropy: the same, in nats.
      seconds: since the run began, without the time between an interruption and a resume.
      images_per_second: since the last line.
      **more: further entries.
    """
    line = {
      "step": int(step),
      "epoch": _number(epoch),
      "learning_rate": _number(learning_rate),
      "losses": {name: _number(loss) for name, loss in losses.items()},
      "accuracy": _by_split(accuracy),
      "cross_entropy": _by_split(cross_entropy),
      "seconds": _number(seconds),
      "images_per_second": _number(images_per_second),
    } | more
    self._run.append(line)
    try:
      if self._events:
        self._events.write_scalars(line["step"], _scalars(line))
        self._events.flush()
    except Exception as error:  # TensorFlow raises its own
      raise DiskError(
        f"TensorBoard events cannot be written to {self._run.path}: "
        f"{disk_full(error) or one_line(error)}; make room, and the same command resumes the "
        "run"
      ) from error
    return line

  def append_training(self, steps: Iterable[tuple[int, float, Mapping[str, float]]]) -> None:
    """Adds lines to training.jsonl, one for each (step, epoch, {name: loss of that step})."""
    self._run.append_training(
      {"step": step, "epoch": epoch, "losses": {n: _number(x) for n, x in losses.items()}}
      for step, epoch, losses in steps
    )

  @functools.cached_property
  def _events(self):
    """Opened at the first evaluation, because TensorFlow takes seconds to import."""
    return _events(self._run.path)

  def __exit__(self, *_):
    if events := vars(self).get("_events"):  # None if they were never opened
      with contextlib.suppress(Exception):  # all were flushed; the disk may be full
        events.close()


def best_single(line: Mapping[str, Any], singles: Iterable[str]) -> tuple[float, str]:
  """(accuracy, reader) of the most accurate of `singles` in one line; the first of equals.

  On the validation split, or if there is none on the test set. It determines the best
  checkpoint.
  """
  accuracy = line["accuracy"].get("validation") or line["accuracy"]["test"]
  best = max(singles, key=lambda reader: accuracy[reader])
  return accuracy[best], best


def result(
  lines: Sequence[Mapping[str, Any]],
  config: Mapping[str, Any],
  *,
  singles: Sequence[str],
  students: int,
  parameters: int,
  version: str,
  **more: Any,
) -> dict[str, Any]:
  """The content of result.json, made from the evaluations; accuracies are fractions.

  "best" is the highest accuracy over all evaluations, the earliest of equals. "best_single" is
  the best single network, chosen on validation if there is a validation split; its accuracy is
  the test accuracy at that evaluation.

  Args:
    lines: of `Run.lines`.
    config: the resolved config.
    singles: names of the readers that are single networks, in the method's order.
    students: the number of networks or branches that the method trains.
    parameters: the number of trained parameters.
    version: of this package.
    **more: further entries, e.g. parameters_deployed.
  """
  best_line = max(lines, key=lambda line: best_single(line, singles)[0])
  best_reader = best_single(best_line, singles)[1]
  chosen_on = "validation" if best_line["accuracy"].get("validation") else "test"
  return {
    "method": config["method"]["name"],
    "network": config["network"],
    "dataset": config["data"]["name"],
    "seed": config["seed"],
    "students": students,
    "epochs": config["epochs"],
    "steps": lines[-1]["step"],
    "evaluations": len(lines),
    "parameters": parameters,
    "seconds": lines[-1]["seconds"],
    "readers": {
      reader: {"single": reader in singles, **_career(lines, reader)}
      for reader in lines[-1]["accuracy"]["test"]
    },
    "best_single": {
      "reader": best_reader,
      "accuracy": best_line["accuracy"]["test"][best_reader],
      "epoch": best_line["epoch"],
      "chosen_on": chosen_on,
    },
    **more,
    "config": config,
    "version": version,
  }


def _career(lines, reader):
  def on(split, line):
    return line["accuracy"][split][reader]

  best = max(lines, key=lambda line: on("test", line))  # max keeps the first of equals
  validated = [line for line in lines if line["accuracy"].get("validation")]
  chosen = max(validated, key=lambda line: on("validation", line), default=None)
  return {
    "last": on("test", lines[-1]),
    "best": on("test", best),
    "best_epoch": best["epoch"],
    "at_best_validation": chosen and on("test", chosen),
  }


def _by_split(measured):
  return {
    split: {reader: _number(value) for reader, value in readers.items()}
    for split, readers in measured.items()
  }


def _number(x):
  """A Python, NumPy or JAX number as a Python number; None for NaN and infinity."""
  x = x.item() if hasattr(x, "item") else x
  return x if math.isfinite(x) else None


def _scalars(line):
  numbers = {key: line[key] for key in ("epoch", "learning_rate", "images_per_second")}
  numbers |= {f"losses/{name}": loss for name, loss in line["losses"].items()}
  for measure in ("accuracy", "cross_entropy"):
    for split, readers in line[measure].items():
      numbers |= {f"{split}_{measure}/{reader}": x for reader, x in readers.items()}
  return {name: number for name, number in numbers.items() if number is not None}


def _events(workdir):
  """clu's TensorBoard writer; None without clu, and in a pod for all but the leader."""
  if not distributed.is_leader():
    return None
  try:
    with host.silent():
      import tensorflow as tf  # clu imports it
      from clu.metric_writers import SummaryWriter

      host.hide_accelerators(tf)
  except ImportError as error:
    print(f"no TensorBoard events: {error}; pip install clu tensorflow tensorboard")
    return None
  return SummaryWriter(str(workdir))
