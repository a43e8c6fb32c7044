"""Sets up the process of a run and becomes its command: `python prepare.py PARENT CORES ...`.

What `subprocess` offers for this, `preexec_fn`, forks a process that has JAX's threads, which
may hang it. Here the new process does it itself, before it becomes the command.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence

PR_SET_PDEATHSIG = 1  # Linux's prctl.h: the signal that a process gets when its parent ends
INTERRUPTED = 75  # the exit code of a run that can go on


def prepared(command: Sequence[str], cores: Iterable[int] | None = None) -> list[str]:
  """A command on these cores; SIGTERM comes to it when this process ends, on Linux.

  It does not see SIGUSR2, which Slurm sends to all processes of a job whose time is up.
  """
  listed = ",".join(map(str, cores or ()))
  return [sys.executable, "-I", __file__, str(os.getpid()), listed, *command]


if __name__ == "__main__":
  _, parent, listed, *command = sys.argv
  signal.signal(signal.SIGUSR2, signal.SIG_IGN)
  if listed:
    os.sched_setaffinity(0, map(int, listed.split(",")))
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before this
      sys.exit(INTERRUPTED)
  os.execv(command[0], command)
