"""Runs of the command line, each in a process of its own, cut short where a case says.

Processes are forked from one that has imported everything, before JAX has started its own
threads: a case costs its run, and not the imports.
"""

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

OPERATIONS = (  # of files, as Python's audit events name them
  *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate"),
  *("shutil.rmtree", "fcntl.flock"),
)
PATIENCE = 300  # seconds after which a process counts as hanging


class Ended(NamedTuple):
  """How a process ended."""

  code: int  # negative: the signal that killed it
  out: str
  err: str


class Process:
  """A run of `okdph train` with these arguments."""

  def __init__(self, arguments, said, *, folder="", kill_at=None, file_size=None, count=None):
    """said: where its output goes, with the endings .out and .err.

    kill_at: it kills itself before that operation on a file of `folder`. file_size: of the
    largest file that it may write, in bytes. count: a file for the number of operations.
    """
    self._said = [Path(f"{said}.{name}") for name in ("out", "err")]
    sys.stdout.flush()
    sys.stderr.flush()
    self.pid = os.fork()
    if self.pid:
      return
    try:
      for number, path in enumerate(self._said, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
      if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
      operations = watch(str(folder), kill_at)
      code = train(arguments)
      if count:
        Path(count).write_text(str(operations[0]))
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
    except BaseException:
      import traceback

      traceback.print_exc()
      os._exit(99)

  def signal(self, number):
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)

  def wait(self):
    """How it ended; one that hangs is killed, and has the code -9."""
    deadline = time.monotonic() + PATIENCE
    while True:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        break
      if time.monotonic() > deadline:
        self.signal(signal.SIGKILL)
      time.sleep(0.005)
    said = [path.read_text(errors="replace") for path in self._said]
    return Ended(os.waitstatus_to_exitcode(status), *said)


def train(arguments):
  """As the program does it: the exit code."""
  from okdph_jax.cli.train import main
  from okdph_jax.runtime import signals

  signals.hold()
  signals.listen()
  return main(list(arguments))


def watch(folder, kill_at):
  """Counts the operations on files of `folder` in [count]; before `kill_at` it kills itself."""
  count = [0]

  def hook(event, arguments):
    if event in OPERATIONS and any(str(a).startswith(folder) for a in arguments[:2]):
      count[0] += 1
      if count[0] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  return count


def import_everything():
  """What a run imports, but for TensorFlow, whose events are not what is tested."""
  sys.modules["tensorflow"] = None
  for name in ("experiment.fit", "training.loop", "cli.train"):
    importlib.import_module(f"okdph_jax.{name}")
