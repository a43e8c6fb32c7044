"""How fast the steps go."""

import math
import time

LOOK_EVERY = 20  # steps, at most, between two looks at the loss; fewer where steps are slow


class StepTimer:
  """How fast the training steps go, evaluations left out, and how long the run has taken."""

  def __init__(self, seconds_before: float):
    self._began = self._saved = time.monotonic()
    self._before = seconds_before
    self._session_steps, self._session_seconds = 0, 0.0
    self.start()

  def start(self) -> None:
    """Begins a lap: the steps up to the next evaluation."""
    self._mark, self._images, self._lap = time.monotonic(), 0, 0.0

  def count(self, images: int) -> None:
    self._images += images
    self._session_steps += 1

  def tick(self) -> None:
    """The steps counted so far are done."""
    now = time.monotonic()
    self._lap += now - self._mark
    self._session_seconds += now - self._mark
    self._mark = now

  def seconds(self) -> float:
    """Since the run began, the sessions before this one included."""
    return self._before + time.monotonic() - self._began

  def images_per_second(self) -> float:
    return self._images / self._lap if self._lap else math.nan

  def step_seconds(self) -> float:
    return self._session_seconds / max(self._session_steps, 1)

  def look_every(self) -> int:
    """About once a second, and every `LOOK_EVERY` steps at least.

    Steps are dispatched ahead of what the device has done, and a stop waits for them all.
    """
    return min(max(int(1 / max(self.step_seconds(), 1e-3)), 1), LOOK_EVERY)

  def saved(self) -> None:
    self._saved = time.monotonic()

  def minutes_since_save(self) -> float:
    return (time.monotonic() - self._saved) / 60
