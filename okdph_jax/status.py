"""The progress of runs, read from their files without JAX."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from okdph_jax.run import CONFIG, ERROR, LOCK, METRICS, Run

RUNNING, FAILED, INTERRUPTED, FINISHED = STATES = (
  "running",
  "failed",
  "interrupted",
  "finished",
)


class Status(NamedTuple):
  """The progress of a run, as of its last evaluation."""

  state: str  # one of STATES
  epochs: int | None  # planned; None before the run has read its data
  epoch: float  # epochs done
  step: int  # steps done
  seconds: float  # of training, from the start to the last evaluation
  images_per_second: float | None
  reader: str | None  # the most accurate one on the test set
  accuracy: float | None  # its test accuracy, a fraction
  age: float | None  # seconds since the last evaluation was written
  message: str  # why it failed, or which process holds it

  @property
  def steps(self) -> int | None:
    """Steps of the whole run; None before the first evaluation."""
    return round(self.step / self.epoch * self.epochs) if self.epoch and self.epochs else None

  @property
  def whole(self) -> float | None:
    """Seconds of the whole run at the pace so far; None before the first evaluation."""
    return self.seconds / self.epoch * self.epochs if self.epoch and self.epochs else None

  @property
  def left(self) -> float | None:
    """Seconds left; None before the first evaluation."""
    if self.whole is None:
      return None
    since = self.age or 0.0 if self.state == RUNNING else 0.0
    return max(self.whole - self.seconds - since, 0.0)


def status(run: Run) -> Status:
  """The `Status` of a run; ValueError, in one line, if one of its files is damaged."""
  holder, result, failure = run.holder, run.result, run.failure
  config, lines = run.config or {}, run.lines
  last = lines[-1] if lines else {}
  test = last.get("accuracy", {}).get("test") or {}
  reader = max(test, key=lambda name: test[name] or 0.0, default=None)
  metrics = run.path / METRICS
  state = RUNNING if holder else FINISHED if result else FAILED if failure else INTERRUPTED
  return Status(
    state=state,
    epochs=config.get("epochs"),
    epoch=last.get("epoch", 0.0),
    step=last.get("step", 0),
    seconds=last.get("seconds", 0.0),
    images_per_second=last.get("images_per_second"),
    reader=reader,
    accuracy=test.get(reader),
    age=time.time() - metrics.stat().st_mtime if lines else None,
    message=(holder if state == RUNNING else failure if state == FAILED else None) or "",
  )


def find(root: Path) -> Iterator[Run]:
  """The runs below `root`, sorted by path: folders with a config, a lock or an error."""
  for folder, below, files in os.walk(root):
    below.sort()
    if {CONFIG, LOCK, ERROR} & set(files):
      below.clear()  # runs are not nested
      yield Run(folder)
