"""The faults: every function tries a number of them and yields what fell short, or None.

None may cost more than the work since the last checkpoint, and none may go unnoticed: a run
that goes on must end with the bits of one that was never disturbed, or be refused in one line.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from tests.faults.processes import Process
from tests.runs import arrays, evaluations

STEPS = 8  # of a run: 4 epochs of 2
SAVED_OFTEN = "--config.checkpoint_every_minutes=0"


class Bench:
  """A folder for cases, the command that all of them run, and how it ends undisturbed."""

  def __init__(self, folder, seed):
    self.folder, self.random = Path(folder), random.Random(seed)
    self.data = arrays(self.folder / "data.npz")
    self.command = (
      "--config=digits:base,resnet8,1",
      "--config.data.name=arrays",
      f"--config.data.dir={self.data}",
      "--config.network=tests.nets:Stateless",
      "--config.batch_size=16",
      f"--config.epochs={STEPS // 2}",
      "--config.eval_every_epochs=2",
      "--config.snapshots=2",
      "--config.views=('flip',)",
      "--config.devices=1",
      SAVED_OFTEN,
    )
    self._cases = 0
    straight = self.new()
    self.start(straight).wait()  # compiles
    straight = self.new()
    began = time.monotonic()
    ended = self.start(straight, folder=straight, count=self.folder / "count").wait()
    self.seconds = time.monotonic() - began
    assert ended.code == 0, ended.err
    self.operations = int((self.folder / "count").read_text())
    self.expected, self.straight = outcome(straight), straight

  def new(self):
    self._cases += 1
    return self.folder / f"case_{self._cases}" / "run"

  def start(self, workdir, *options, **faults):
    workdir.parent.mkdir(exist_ok=True)
    arguments = (*self.command, *options, f"--workdir={workdir}")
    return Process(arguments, faults.pop("said", workdir), **faults)

  def finish(self, workdir, *options):
    """Runs to the end: None where it is as if nothing had happened, else what is not."""
    ended = self.start(workdir, *options).wait()
    if ended.code or "Traceback" in ended.err:
      return f"exit code {ended.code}: {ended.err[-300:]}"
    return self.differs(workdir)

  def differs(self, workdir):
    found = outcome(workdir)
    wrong = [name for name in self.expected if found[name] != self.expected[name]]
    return f"other {', '.join(wrong)} than undisturbed: {found['leftovers']}" if wrong else None

  def part_of_a_run(self):
    """A folder of a run that was killed in its middle, with checkpoints."""
    workdir = self.new()
    for at in range(self.operations // 2, self.operations):
      shutil.rmtree(workdir, ignore_errors=True)
      self.start(workdir, folder=workdir, kill_at=at).wait()
      if len(list(workdir.glob("checkpoints/[0-9]"))) >= 2 and evaluations(workdir):
        return workdir
    raise AssertionError("no kill left two checkpoints and an evaluation")


def outcome(workdir):
  """What must not depend on faults: the numbers, and the bits of the last checkpoint."""
  from okdph_jax.run import Run

  result = Run(workdir).result or {}
  metrics = workdir / "checkpoints" / str(STEPS) / "metrics" / "metrics"
  return {
    "parameters": json.loads(metrics.read_text())["digest"] if metrics.exists() else None,
    "evaluations": evaluations(workdir),
    "result": {k: v for k, v in result.items() if k != "seconds"},
    "snapshots": sorted(Run(workdir).snapshots),
    "leftovers": sorted(p.name for p in workdir.rglob("*tmp*")),
  }


def one_line(ended, code):
  """None where a process has ended with `code` and one line; else what it did."""
  if ended.code == code and ended.err.count("\n") == 1 and "Traceback" not in ended.err:
    return None
  return f"exit code {ended.code} and {ended.err.count(chr(10))} lines: {ended.err[-300:]}"


def kills_at_operations(bench, count):
  """kill -9 before an operation on a file."""

  def kill(workdir):
    at = bench.random.randint(1, bench.operations)
    bench.start(workdir, folder=workdir, kill_at=at).wait()

  yield from chains(bench, count, kill)


def kills_in_time(bench, count):
  """kill -9 after a random time."""

  def kill(workdir):
    process = bench.start(workdir)
    time.sleep(bench.random.uniform(0, bench.seconds))
    process.signal(signal.SIGKILL)
    process.wait()

  yield from chains(bench, count, kill)


def chains(bench, count, kill):
  """Up to eight kills in a row, after each of which the run goes on, and then to the end."""
  while count:
    workdir, length = bench.new(), min(count, bench.random.randint(1, 8))
    for _ in range(length):
      kill(workdir)
    yield from [None] * (length - 1)
    yield bench.finish(workdir)
    shutil.rmtree(workdir.parent)
    count -= length


def signals(bench, count):
  """SIGTERM or SIGINT after a random time, in a third of the cases two; then it goes on."""
  for _ in range(count):
    workdir = bench.new()
    process = bench.start(workdir)
    time.sleep(bench.random.uniform(0.01, bench.seconds))
    first, second = bench.random.choices((signal.SIGTERM, signal.SIGINT), k=2)
    twice = bench.random.random() < 1 / 3
    process.signal(first)
    if twice:
      time.sleep(0.02)
      process.signal(second)
    ended = process.wait()
    allowed = {0, 75, 128 + second if twice else 75, -first}  # -first: before it listens
    if ended.code not in allowed or "Traceback" in ended.err:
      yield f"exit code {ended.code}: {ended.err[-300:]}"
    elif ended.code == 75 and ended.err.count("\n") != 1:
      yield f"{ended.err.count(chr(10))} lines: {ended.err[-300:]}"
    else:
      yield bench.finish(workdir)
    shutil.rmtree(workdir.parent)


def flip(data, chance):
  bit = chance.randrange(8 * len(data))
  data[bit // 8] ^= 1 << bit % 8


def cut(data, chance):
  del data[chance.randrange(len(data)) :]


def blank(data, chance):
  data[:] = bytes(len(data))


def damaged_files(bench, count):
  """One file of a stopped run loses a bit, its end, its content, or itself."""
  whole = bench.part_of_a_run()
  files = sorted(p for p in whole.rglob("*") if p.is_file() and p.stat().st_size)
  files = [p for p in files if p.name not in ("lock", "commit_success.txt")]
  for _ in range(count):
    workdir = bench.new()
    shutil.copytree(whole, workdir, symlinks=True)
    file = workdir / bench.random.choice(files).relative_to(whole)
    harm = bench.random.choice((flip, flip, flip, cut, blank, None))
    if harm is None:
      file.unlink()
    else:
      data = bytearray(file.read_bytes())
      harm(data, bench.random)
      file.write_bytes(data)
    ended = bench.start(workdir).wait()
    if ended.code == 0 and "Traceback" not in ended.err:
      found = outcome(workdir)
      # A digit of a line that is still a line cannot be told from another.
      same = ("parameters",) if file.name == "metrics.jsonl" else ("parameters", "evaluations")
      wrong = [name for name in same if found[name] != bench.expected[name]]
      failed = f"other {', '.join(wrong)}, unnoticed" if wrong else None
    else:
      failed = one_line(ended, 2)
    kind = harm.__name__ if harm else "delete"
    yield f"{kind} {file.relative_to(workdir)}: {failed}" if failed else None
    shutil.rmtree(workdir.parent)


def full_disks(bench, count):
  """A file system that becomes full, or files that become too large; then there is room."""
  room = sum(p.stat().st_size for p in bench.straight.rglob("*") if p.is_file()) * 2 // 1024
  for i in range(count):
    size = max(4, round(room * (i + bench.random.random()) / count))  # KiB
    workdir = bench.new()
    workdir.parent.mkdir()
    mounted = mount(workdir.parent, size)
    faults = {} if mounted else {"file_size": size * 64}
    ended = bench.start(workdir, said=bench.folder / "full", **faults).wait()
    failed = one_line(ended, 1) if ended.code else None
    if mounted:
      subprocess.run(["mount", "-o", "remount,size=64M", workdir.parent], check=True)
    failed = failed or bench.finish(workdir)
    yield failed and f"{size} KiB: {failed}"
    if mounted:
      subprocess.run(["umount", workdir.parent], check=True)
    shutil.rmtree(workdir.parent)


def mount(folder, kibibytes):
  """Whether a tmpfs of that size is now at `folder`; not everybody may mount."""
  command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder]
  return subprocess.run(command, capture_output=True).returncode == 0


def two_writers(bench, count):
  """A second process on a run that another one holds."""
  for _ in range(count):
    workdir = bench.new()
    first = bench.start(workdir)
    while not (workdir / "lock").exists() or not (workdir / "lock").read_text():
      time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    ended = bench.start(workdir, said=bench.folder / "second").wait()
    os.kill(first.pid, signal.SIGCONT)
    failed = one_line(ended, 2) or ("is writing to" not in ended.err and ended.err) or None
    first.wait()
    yield failed or bench.differs(workdir)
    shutil.rmtree(workdir.parent)


def changed_data(bench, count):
  """Other images, labels, orders or counts than the run began with."""
  whole, original = bench.part_of_a_run(), dict(np.load(bench.data))
  for _ in range(count):
    changed, key = dict(original), bench.random.choice(sorted(original))
    split, kind = key.split("_")
    order = np.random.default_rng(bench.random.randrange(2**32))
    if bench.random.random() < 0.5:
      changed[key] = order.permutation(changed[key])
    elif kind == "images":
      changed[key] = changed[key] ^ (np.arange(changed[key].size) == 7).reshape(
        changed[key].shape
      ).astype(np.uint8)
    else:
      for name in (f"{split}_images", f"{split}_labels"):
        changed[name] = np.concatenate([changed[name], changed[name][:1]])
    workdir = bench.new()
    shutil.copytree(whole, workdir, symlinks=True)
    try:
      np.savez(bench.data, **changed)
      ended = bench.start(workdir).wait()
    finally:
      np.savez(bench.data, **original)
    same = all(np.array_equal(changed[k], original[k]) for k in original)
    yield None if same else one_line(ended, 2)
    shutil.rmtree(workdir.parent)


def soak(bench, count):
  """One long run: memory, threads and open files after its first third and at its end."""
  if not count:
    return
  workdir = bench.new()
  epochs = f"--config.epochs={count}"
  rarely = "--config.checkpoint_every_minutes=10"
  process = bench.start(workdir, epochs, rarely, "--config.snapshots=0")
  seen, metrics = [], workdir / "metrics.jsonl"
  while len(seen) < 3 * (count // 2) // 4:
    done, _ = os.waitpid(process.pid, os.WNOHANG)
    if done:
      yield f"it ended early: {workdir}"
      return
    lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    if lines > len(seen):
      with contextlib.suppress(OSError):
        seen += [resources(process.pid)] * (lines - len(seen))
    time.sleep(0.02)
  code = process.wait().code
  early, late = seen[len(seen) // 3], seen[-1]
  grown = [
    f"{name} {early[name]} -> {late[name]}"
    for name, allowed in (("kB", 20_000), ("threads", 4), ("files", 8))
    if late[name] > early[name] + allowed
  ]
  yield ", ".join(grown) or (f"exit code {code}" if code else None)


def resources(pid):
  status = Path(f"/proc/{pid}/status").read_text().splitlines()
  fields = dict(line.split(":", 1) for line in status)
  return {
    "kB": int(fields["VmRSS"].split()[0]),
    "threads": int(fields["Threads"]),
    "files": len(os.listdir(f"/proc/{pid}/fd")),
  }
