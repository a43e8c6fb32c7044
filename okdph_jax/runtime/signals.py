"""SIGTERM and SIGINT stop a run at its next step, with a checkpoint; a second one at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGTERM, signal.SIGINT)

# One request may arrive as several signals: Linux sends a process its parent-death signal again
# for each thread of the dying parent that had adopted it, and `timeout` signals both a process
# and its group.
SAME_REQUEST_SECONDS = 0.5

_came: list[int] | None = None  # the signals so far, once `listen` was called


class Interrupted(Exception):
  """SIGTERM or SIGINT stopped a run, which can be resumed."""


def hold() -> None:
  """Blocks the signals until `listen`, also across an `exec`; they are not lost."""
  signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def listen() -> None:
  """From now on records and reports signals at once; a second one ends this process.

  For programs, before they import JAX. A thread waits for the signals, because Python's
  handlers do not run during calls into C++, such as a compilation.
  """
  global _came
  _came, (reading, writing) = [], os.pipe()
  os.set_blocking(writing, False)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  for number in STOPPING:
    signal.signal(number, lambda *_: None)
  threading.Thread(target=_hear, args=(reading, _came), name="signals", daemon=True).start()
  signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _hear(reading: int, came: list[int]) -> None:
  first = 0.0
  while True:
    for number in os.read(reading, 1):
      if came and time.monotonic() < first + SAME_REQUEST_SECONDS:
        continue
      if came:
        _say(f"{_name(number)} again: stopped at once; the same command resumes the run")
        os._exit(128 + number)
      _say(f"{_name(number)}: stopping at the next step; a second signal stops at once")
      first = time.monotonic()
      came.append(number)


def _name(number):
  return signal.Signals(number).name


def _say(line):
  start = "\n" if sys.stderr.isatty() else ""  # a progress bar may be in this line
  os.write(2, f"{start}okdph_jax: {line}\n".encode())


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
  """Yields `interrupted() -> bool`: whether SIGTERM or SIGINT came, to any process of a pod.

  All processes of a pod must call it together. Without `listen`, as in a notebook, the previous
  handlers are restored at the first signal and at the end of the block.
  """
  from okdph_jax.runtime import distributed  # imports JAX

  if _came is not None:
    yield lambda: distributed.any_process(bool(_came))
    return
  came = []

  def note(number, frame):
    del frame
    came.append(number)
    signal.signal(number, previous[number])

  try:
    previous = {number: signal.signal(number, note) for number in STOPPING}
  except ValueError:  # only the main thread may set handlers
    previous = {}
  try:
    yield lambda: distributed.any_process(bool(came))
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def stop_before_the_first_step(interrupted: Callable[[], bool]) -> None:
  """Raises `Interrupted` if a signal came while nothing of the run was computed yet."""
  if interrupted():
    raise Interrupted("interrupted before a step was done; give the same command again")
