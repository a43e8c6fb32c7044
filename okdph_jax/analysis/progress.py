"""How far an analysis is: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm

from okdph_jax.durations import clock
from okdph_jax.training.progress import QUIET_SECONDS


class Progress(AbstractContextManager["Progress"]):
  """Counts on stderr the parts that are done, `done` of `total` before it begins."""

  _spoke = time.monotonic()  # when the last line was written, by whichever it was

  def __init__(self, title: str, total: int, unit: str, *, done: int = 0):
    self._title, self._total, self._unit = title, total, unit
    self._done = self._before = done
    self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, disable=None)
    self._began = self._now = time.monotonic()
    self._compiled: tuple[int, float] | None = None  # parts and time of the first update

  def update(self, parts: int = 1) -> None:
    self._done, self._now = self._done + parts, time.monotonic()
    self._compiled = self._compiled or (self._done, self._now)
    self._bar.update(parts)
    if self._bar.disable and self._now - Progress._spoke > QUIET_SECONDS:
      Progress._spoke = self._now
      pace = (self._now - self._began) / (self._done - self._before)
      left = clock(pace * (self._total - self._done))
      count = f"{self._done} of {self._total} {self._unit}s"
      print(f"{self._title}: {count}, {left} left", file=sys.stderr, flush=True)

  def speed(self) -> str:
    """Parts per second, in words; without the first ones, which compile, if there are more."""
    first, began = self._compiled or (self._before, self._began)
    alone = self._done == first
    if alone:
      first, began = self._before, self._began
    rate = (self._done - first) / max(self._now - began, 1e-9)
    return f"{rate:.3g} {self._unit}s per second" + ", compilation included" * alone

  def __exit__(self, *_: Any) -> None:
    self._bar.close()
