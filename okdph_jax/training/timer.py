"""How fast the steps go."""

import collections
import math
import time

LOOK_EVERY = 20  # steps, at most, between two looks at the loss; fewer where steps are slow
RECENT = 20  # looks whose steps tell how long a step takes


class StepTimer:
  """How fast the training steps go, evaluations left out, and how long this has taken."""

  def __init__(self):
    self._began = self._saved = time.monotonic()
    self._uncounted = 0  # steps since the last tick
    self._recent = collections.deque(maxlen=RECENT)  # (steps, seconds) between two ticks
    self.start()

  def start(self) -> None:
    """Begins a lap: the steps up to the next evaluation."""
    self._mark, self._images, self._lap = time.monotonic(), 0, 0.0

  def count(self, images: int) -> None:
    self._images += images
    self._uncounted += 1

  def tick(self) -> None:
    """The steps counted so far are done."""
    now = time.monotonic()
    self._lap += now - self._mark
    self._recent.append((self._uncounted, now - self._mark))
    self._mark, self._uncounted = now, 0

  def forget(self) -> None:
    """What follows goes at another pace."""
    self._recent.clear()

  def seconds(self) -> float:
    """Since this session began."""
    return time.monotonic() - self._began

  def images_per_second(self) -> float:
    return self._images / self._lap if self._lap else math.nan

  def step_seconds(self) -> float:
    """Of the steps before the last few ticks; NaN without any."""
    steps, seconds = map(sum, zip(*self._recent, strict=True)) if self._recent else (0, 0.0)
    return seconds / steps if steps else math.nan

  def look_every(self) -> int:
    """About once a second, and every `LOOK_EVERY` steps at least.

    Steps are dispatched ahead of what the device has done, and a stop waits for them all.
    """
    return min(max(int(1 / max(self.step_seconds(), 1e-3)), 1), LOOK_EVERY)

  def saved(self) -> None:
    self._saved = time.monotonic()

  def minutes_since_save(self) -> float:
    return (time.monotonic() - self._saved) / 60
