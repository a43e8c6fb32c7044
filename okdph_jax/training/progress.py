"""What a run says while it goes: a bar on a terminal or in a notebook, lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager

from tqdm.auto import tqdm

from okdph_jax.durations import clock
from okdph_jax.runtime import distributed

QUIET_SECONDS = 30  # between plain lines


class Progress(AbstractContextManager):
  """Loss, accuracy, images per second and the time left, from `start` to `total` steps."""

  def __init__(self, start: int, total: int):
    shown = sys.stderr.isatty() or "ipykernel" in sys.modules
    self._bar_shown = shown and distributed.is_leader()
    self._total = total
    self._bar = tqdm(
      total=total, initial=start, unit="step", disable=not self._bar_shown, dynamic_ncols=True
    )
    self._spoke = time.monotonic()
    self._from = None

  def pace_from(self, step: int) -> None:
    """From here on the pace, evaluations included, tells the time left; none is told before."""
    self._from = step, time.monotonic()

  def update(
    self, step: int, *, loss: float, accuracy: float, images_per_second: float
  ) -> None:
    """Shows the training loss and accuracy, means since the last evaluation."""
    numbers = f"loss {loss:.4f}, accuracy {accuracy:.4f}, {images_per_second:,.0f} images/s"
    if self._bar_shown:
      self._bar.set_postfix_str(numbers, refresh=False)
      self._bar.update(step - self._bar.n)
    elif time.monotonic() - self._spoke > QUIET_SECONDS:
      self._spoke = time.monotonic()
      self.say(f"step {step}/{self._total}: {numbers}, {self._left(step)}")

  def _left(self, step):
    if not self._from:
      return "still compiling in the background"
    start, began = self._from
    return f"{clock((self._spoke - began) / (step - start) * (self._total - step))} left"

  def say(self, line: str) -> None:
    """A line of its own, above the bar."""
    if self._bar_shown:
      self._bar.write(line)
    else:
      print(line, flush=True)

  def __exit__(self, *_):
    self._bar.close()
