"""Measures the speed of training."""

import collections
import math
import time

LOOK_EVERY = 20  # at most so many steps between two looks at the loss; fewer for slow steps
RECENT = 20  # the time of a step is a mean over the steps between so many ticks


class StepTimer:
  """The speed of the training steps, without evaluations, and the time since it was made."""

  def __init__(self):
    self._began = self._saved = time.monotonic()
    self._steps = 0  # counted since the last tick
    self._recent = collections.deque(maxlen=RECENT)  # (steps, seconds) between two ticks
    self.start()

  def start(self) -> None:
    """Starts a lap, the steps between two evaluations."""
    self._mark, self._images, self._lap = time.monotonic(), 0, 0.0

  def count(self, images: int) -> None:
    """Counts a step on so many images when it is dispatched."""
    self._images += images
    self._steps += 1

  def tick(self) -> None:
    """Notes that the device has finished the steps counted so far."""
    now = time.monotonic()
    self._lap += now - self._mark
    self._recent.append((self._steps, now - self._mark))
    self._mark, self._steps = now, 0

  def forget(self) -> None:
    """Drops the measured times: from now on the steps have another speed."""
    self._recent.clear()

  def seconds(self) -> float:
    """Seconds since the timer was made."""
    return time.monotonic() - self._began

  def images_per_second(self) -> float:
    """Of this lap; NaN before its first tick."""
    return self._images / self._lap if self._lap else math.nan

  def step_seconds(self) -> float:
    """The mean time of a recent step; NaN before the first tick."""
    steps, seconds = map(sum, zip(*self._recent, strict=True)) if self._recent else (0, 0.0)
    return seconds / steps if steps else math.nan

  def look_every(self) -> int:
    """The number of steps to dispatch between two looks: about a second's, and not too many.

    Steps are dispatched asynchronously, and an interrupted run has to wait for all of them.
    """
    return min(max(int(1 / max(self.step_seconds(), 1e-3)), 1), LOOK_EVERY)

  def saved(self) -> None:
    self._saved = time.monotonic()

  def minutes_since_save(self) -> float:
    return (time.monotonic() - self._saved) / 60
