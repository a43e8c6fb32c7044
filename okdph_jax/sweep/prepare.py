"""Sets up the process of a run, then runs its command: `python prepare.py PARENT CORES ...`.

The `preexec_fn` of `subprocess` is no alternative: it runs in a fork of a process with JAX's
threads, and may hang. This runs in the new process.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence

PR_SET_PDEATHSIG = 1  # Linux's prctl.h: the signal that a process gets when its parent ends
INTERRUPTED = 75  # the exit code of a run that can be resumed


def prepared(command: Sequence[str], cores: Iterable[int] | None = None) -> list[str]:
  """The command, restricted to these cores; on Linux it gets SIGTERM when this process ends.

  It ignores SIGUSR2, which Slurm sends to all processes of a job that runs out of time.
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
    if os.getppid() != int(parent):  # the parent has ended already
      sys.exit(INTERRUPTED)
  os.execv(command[0], command)
