"""`python -m tests.faults --n=1000`: tries faults, and prints what was tried and what failed.

--n scales all rows; --only=NAME,... chooses some; --seed draws others. docs/reliability.md
has the table of a whole run.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from tests.faults import cases, processes

ROWS = {  # name -> (what is tried, how many of a thousand)
  "kills_at_operations": ("kill -9 before an operation on a file, up to 8 in a row", 130),
  "kills_in_time": ("kill -9 at a random time, up to 8 in a row", 70),
  "signals": ("SIGTERM or SIGINT at a random time, one or two", 24),
  "damaged_files": ("a file of a stopped run that lost a bit, its end, or itself", 64),
  "full_disks": ("a disk that becomes full, then has room", 12),
  "two_writers": ("a second process on the same run", 3),
  "changed_data": ("a resume on other images or labels", 6),
  "soak": ("epochs of a long run: memory, threads, open files", 800),
  "malformed_inputs": ("options, configs, views, run files and arrays by Hypothesis", 1000),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--n", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default=",".join(ROWS))
  options = parser.parse_args()
  table = []
  with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/xla")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    processes.import_everything()
    bench = None
    for name in (name for name in ROWS if name in options.only.split(",")):
      about, share = ROWS[name]
      count = max(1, round(share * options.n / 1000))
      if name == "malformed_inputs":  # the last: it starts JAX, and then nothing may fork
        from tests.faults.inputs import malformed_inputs

        found = malformed_inputs(Path(folder), count, options.seed)
      else:
        bench = bench or cases.Bench(folder, options.seed)
        found = getattr(cases, name)(bench, count)
      table.append(row := [about, 0, 0])
      for failure in found:  # after Ctrl-C the table has what was tried
        row[1] += count if name == "soak" else 1
        row[2] += bool(failure)
        if failure:
          print(f"{name}: {failure}", flush=True)
  print(tabulate(table, ("fault", "tried", "failed"), tablefmt="github"))
  used = sum(os.times()[:4])
  print(f"seed {options.seed}, {used:.0f} s of CPU time")
  sys.exit(any(row[2] for row in table))


if __name__ == "__main__":
  main()
