"""A few of the faults of `python -m tests.faults`, in a process that may fork."""

import subprocess
import sys

ROWS = ("kills_at_operations", "damaged_files", "full_disks", "malformed_inputs")


def test_a_few_faults():
  command = [sys.executable, "-m", "tests.faults", "--n=40", f"--only={','.join(ROWS)}"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  table = [line.split("|")[2:4] for line in done.stdout.splitlines() if line.startswith("| ")]
  tried = [(int(tried), int(failed)) for tried, failed in table[1:]]
  assert len(tried) == len(ROWS) and all(n and not failed for n, failed in tried)
