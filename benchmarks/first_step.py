"""How long a run takes from its command to its first step, without and with compiled programs.

    python -m benchmarks.first_step [CONFIG] [--option=value ...]

The config is digits by default. The same command is run in turn with an empty cache, again,
with another seed and with another learning rate, each in a folder of its own, and stopped when
it says that the step is compiled. CPU time is that of the process up to there.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

from tabulate import tabulate

TURNS = {  # what: its options
  "empty cache": (),
  "again": (),
  "another seed": ("--config.seed=7",),
  "another learning rate": ("--config.learning_rate=0.05",),
}


def main(arguments):
  config, *options = arguments or ["digits"]
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    for turn, own in TURNS.items():
      command = ["-m", "okdph_jax", "train", f"--config={config}", *options, *own]
      wall, cpu = first_step([*command, f"--workdir={folder}/{len(rows)}"])
      rows.append((turn, f"{wall:.1f}", f"{cpu:.1f}"))
  print(tabulate(rows, (config, "seconds", "CPU seconds"), disable_numparse=True))


def first_step(command):
  """(wall, CPU) seconds until the run has compiled its step; stops it then."""
  began = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, "-u", *command],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  said = []
  for line in process.stdout:
    said.append(line)
    if line.startswith("compiled in"):
      wall, cpu = time.monotonic() - began, cpu_seconds(process.pid)
      process.send_signal(signal.SIGKILL)
      process.communicate()
      return wall, cpu
  raise SystemExit("".join(said))


def cpu_seconds(pid):
  """User and system time of a process so far (Linux)."""
  with open(f"/proc/{pid}/stat") as file:
    user, system = file.read().rpartition(")")[2].split()[11:13]
  return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
  main(sys.argv[1:])
