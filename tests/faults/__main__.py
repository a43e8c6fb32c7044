"""`python -m tests.faults --n=1000`: tries faults, and prints what was tried and what failed.

--n scales all rows; --only=NAME,... chooses some; --seed draws others. docs/reliability.md
has the table of a whole run.
"""

import argparse
import os
import sys
import tempfile
import time
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
ONE_CASE = {"soak"}  # however many


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--n", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default=",".join(ROWS))
  options = parser.parse_args()
  table, failed = [], 0
  with tempfile.TemporaryDirectory() as folder:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/xla")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    processes.import_everything()
    chosen, bench = options.only.split(","), None
    for name, (about, share) in ROWS.items():
      count, began = max(1, round(share * options.n / 1000)), time.monotonic()
      if name not in chosen:
        continue
      if name == "malformed_inputs":  # the last: it starts JAX, and then nothing may fork
        from tests.faults.inputs import malformed_inputs

        found = malformed_inputs(Path(folder), count, options.seed)
      else:
        bench = bench or cases.Bench(folder, options.seed)
        found = getattr(cases, name)(bench, count)
      said = list(shown(name, found))
      tried = count if name in ONE_CASE else len(said)
      wrong = sum(map(bool, said))
      table.append((about, tried, wrong, f"{time.monotonic() - began:.0f}"))
      failed += wrong
  print(tabulate(table, ("fault", "tried", "failed", "seconds"), tablefmt="github"))
  used = sum(sum(os.times()[i] for i in pair) for pair in ((0, 1), (2, 3)))
  print(f"seed {options.seed}, {used:.0f} s of CPU time")
  sys.exit(bool(failed))


def shown(name, found):
  for failure in found:
    if failure:
      print(f"{name}: {failure}", flush=True)
    yield failure


if __name__ == "__main__":
  main()
