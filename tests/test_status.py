"""How far runs are, from their files; and the table of `okdph watch`."""

import os
import subprocess
import sys
import time

import pytest

from okdph_jax.cli import dispatch
from okdph_jax.run import Run
from okdph_jax.status import find, status

CONFIG = {
  "network": "resnet8",
  "epochs": 8,
  "seed": 1,
  "data": {"name": "digits"},
  "method": {"name": "base"},
  "wrappers": [],
}
RESULT = {
  "config": CONFIG,
  "seed": 1,
  "epochs": 8,
  "evaluations": 4,
  "readers": {},
  "best_single": {"reader": "student_1", "accuracy": 0.75, "epoch": 8, "chosen_on": "test"},
}
LINE = {
  "step": 20,
  "epoch": 2.0,
  "seconds": 60.0,
  "images_per_second": 1234.5,
  "losses": {},
  "accuracy": {"test": {"student_0": 0.5, "student_1": 0.75}},
}


@pytest.fixture
def root(tmp_path):
  """A run of each state: two of eight epochs done, or none, or all."""
  for name in ("going", "cut", "broken", "new", "done"):
    run = Run(tmp_path / "table" / name)
    run.path.mkdir(parents=True)
    run.write_record(CONFIG, {})
    if name != "new":
      run.append(LINE if name != "done" else LINE | {"step": 80, "epoch": 8.0})
  Run(tmp_path / "table" / "broken").write_failure("the loss is gone")
  Run(tmp_path / "table" / "done").write_result(RESULT)
  (tmp_path / "table" / "cut" / "checkpoints").mkdir()
  return tmp_path


def test_what_a_run_s_files_say(root):
  runs = {run.path.name: run for run in find(root)}
  assert list(runs) == ["broken", "cut", "done", "going", "new"]
  with runs["going"].locked():
    going = status(runs["going"])
    assert (
      going.state == "running" and going.message == f"process {os.getpid()} on {os.uname()[1]}"
    )
    earlier = time.time() - 100
    os.utime(runs["going"].path / "metrics.jsonl", (earlier, earlier))
    left = status(runs["going"]).left
    assert 75 < left < 81  # 30 s an epoch, six to go, 100 s ago
  cut = status(runs["cut"])
  assert (cut.state, cut.step, cut.steps, cut.epoch, cut.epochs) == (
    "interrupted",
    20,
    80,
    2,
    8,
  )
  assert (cut.reader, cut.accuracy, cut.left) == ("student_1", 0.75, 180.0)
  assert status(runs["going"]).state == "interrupted"  # its lock is gone
  broken = status(runs["broken"])
  assert (broken.state, broken.message) == ("failed", "the loss is gone")
  assert status(runs["done"]).state == "finished" and status(runs["done"]).left == 0
  new = status(runs["new"])
  assert (new.state, new.steps, new.left, new.accuracy) == ("interrupted", None, None, None)
  runs["broken"].reopen()
  assert runs["broken"].failure is None


def test_looking_does_not_bar_a_run_that_starts(tmp_path):
  """Whoever looks holds the lock for a moment."""
  path = tmp_path / "lock"
  path.touch()
  program = (
    "import fcntl, sys, time\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_SH)\n"
    "print(flush=True)\ntime.sleep(0.04)"
  )
  looking = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
  looking.stdout.readline()
  with Run(tmp_path).locked():
    pass
  assert looking.wait() == 0


def test_watch(root, capsys):
  (root / "table" / "new" / "config.json").write_text("{")
  with Run(root / "table" / "going").locked():
    assert dispatch(["watch", str(root), "--once"]) == 0
  output = capsys.readouterr().out
  rows = [line.split() for line in output.splitlines()]
  assert rows[0][1:] == "4 runs (1 running, 1 failed, 1 interrupted, 1 finished)".split()
  assert [row[:2] for row in rows[2:6]] == [
    ["table/going", "running"],
    ["table/broken", "failed"],
    ["table/cut", "interrupted"],
    ["table/done", "finished"],
  ]
  cut = ["2/8", "20/80", "1,234", "0.7500", "student_1", "0:03:00", "0:00:00", "ago"]
  assert rows[4][2:] == cut
  assert "failed: table/broken: the loss is gone" in output
  assert "is not JSON" in " ".join(output.split())
  assert dispatch(["watch", str(root / "nothing"), "--once"]) == 2
  assert "there is no directory" in capsys.readouterr().err


def test_watch_needs_no_jax():
  code = "import sys, okdph_jax.cli.watch\nprint({'jax', 'numpy'} & {*sys.modules})"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "set()"
