"""SIGTERM and SIGINT stop a run after its current step. A second one ends it at once."""

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

_came: list[int] | None = None  # the signals so far, where this process listens


class Interrupted(Exception):
  """SIGTERM or SIGINT stopped a run, which can go on."""


def hold() -> None:
  """Keeps the signals until `listen`, also for a program that this one becomes by `exec`."""
  signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def listen() -> None:
  """From now on signals are noted and said at once; a second one ends this process.

  For programs, before they import JAX. A thread waits for the signals: a handler in Python
  runs only once a call of C++ returns, and compiling is one.
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
  start = "\n" if sys.stderr.isatty() else ""  # there a progress bar has begun a line
  os.write(2, f"{start}okdph_jax: {line}\n".encode())


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
  """Yields `interrupted() -> bool`: whether SIGTERM or SIGINT came.

  Where the process does not `listen`, as in a notebook, a second signal does what it did
  before. In a pod all processes ask at once, and have the same answer: whether one came to any.
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
  except ValueError:  # not the main thread: signals are somebody else's
    previous = {}
  try:
    yield lambda: distributed.any_process(bool(came))
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def stop_before_the_first_step(interrupted: Callable[[], bool]) -> None:
  """Raises `Interrupted` where a signal came: for the pauses between imports and compiling."""
  if interrupted():
    raise Interrupted("interrupted before a step was done; give the same command again")
