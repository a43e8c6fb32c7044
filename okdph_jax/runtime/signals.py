"""SIGTERM and SIGINT: noted, and obeyed at the next step."""

import contextlib
import signal
from collections.abc import Callable, Iterator

from okdph_jax.runtime import distributed


class Interrupted(Exception):
  """SIGTERM or SIGINT stopped a run, which has a checkpoint and can go on."""


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
  """Yields `interrupted() -> bool`: whether SIGTERM or SIGINT came. A second one kills.

  In a pod all processes ask at once, and have the same answer: whether one came to any.
  """
  came = []

  def note(number, frame):
    del frame
    came.append(number)
    signal.signal(number, previous[number])

  try:
    previous = {
      number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)
    }
  except ValueError:  # not the main thread: signals are somebody else's
    previous = {}
  try:
    yield lambda: distributed.any_process(bool(came))
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
