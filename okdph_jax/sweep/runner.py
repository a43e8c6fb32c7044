"""Runs the cells of a sweep, a few at a time, each as a process of `okdph train`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

from tqdm import tqdm

from okdph_jax.durations import clock
from okdph_jax.errors import one_line
from okdph_jax.experiment.fit import already_finished, generations
from okdph_jax.run import ERROR, LOG, Run
from okdph_jax.runtime import signals
from okdph_jax.status import RUNNING, Status, status
from okdph_jax.sweep.cells import Cell, arguments, stacked
from okdph_jax.sweep.prepare import INTERRUPTED, prepared

PROGRAM = (sys.executable, "-m", "okdph_jax.main")
POLL_SECONDS = 0.2  # between two looks at the processes
LOOK_SECONDS = 2.0  # between two looks at the files of the runs
VISIBLE = "CUDA_VISIBLE_DEVICES"


def unfinished(cells: Sequence[Cell]) -> list[Cell]:
  """The cells whose runs have not finished with this config."""
  return [cell for cell in cells if not is_finished(cell)]


def is_finished(cell: Cell) -> bool:
  """Whether the cell's run has finished, with all its generations.

  No if a file is damaged, which the run will report.
  """
  each = generations(cell.config, cell.run.path)
  try:
    return all(already_finished(config, Run(folder)) for config, folder in each)
  except ValueError:
    return False


class Runner:
  """Runs cells, at most `jobs` processes at a time, and prints one line of progress.

  stack: one process trains at most so many cells that differ only in their seeds.
  """

  def __init__(self, cells: Sequence[Cell], jobs: int, stack: int = 1):
    self.cells = cells
    self.slots = slots(jobs)
    self.pending = stacked(unfinished(cells), stack)  # groups of cells, each a process
    self.failed: list[str] = []  # names of cells
    self._signals: list[int] = []
    self._status: dict[str, Status] = {}  # of cells by name, when last looked at
    shown = sys.stderr.isatty()
    self._bar = tqdm(bar_format="{desc}", disable=not shown, dynamic_ncols=True)
    self._say = self._bar.write if shown else functools.partial(print, flush=True)

  def run(self) -> int:
    """Runs the unfinished cells; the exit code. SIGTERM and SIGINT stop all runs."""
    with contextlib.ExitStack() as stack:
      for number in signals.STOPPING:
        handler = signal.signal(number, lambda number, frame: self._signals.append(number))
        stack.callback(signal.signal, number, handler)  # restores the previous handler
      return self._run()

  def _run(self) -> int:
    self._say(self.line())
    looked = 0.0
    while (self.pending or self.busy) and not self._signals:
      ended = [self.collect(slot) for slot in self.busy]
      if any(ended) or time.monotonic() - looked > LOOK_SECONDS:
        self.start()
        self._bar.set_description_str(line := self.line())
        if any(ended) and self._bar.disable:
          self._say(line)
        looked = time.monotonic()
      time.sleep(POLL_SECONDS)
    if self._signals:
      self.stop()
    self._bar.close()
    print(self.line())
    if self.failed:
      print(f"failed runs, see their log.txt: {', '.join(self.failed)}")
    return INTERRUPTED if self._signals and self.pending else 1 if self.failed else 0

  @property
  def busy(self) -> list[Slot]:
    return [slot for slot in self.slots if slot.process]

  @property
  def running(self) -> list[Cell]:
    return [cell for slot in self.busy for cell in slot.cells]

  @property
  def waiting(self) -> list[Cell]:
    return list(itertools.chain(*self.pending))

  def start(self) -> None:
    """Starts the first cells that can run, as long as there are free slots."""
    free = [slot for slot in self.slots if not slot.process]
    for group in list(self.pending):
      if not free:
        return
      left = unfinished(group)  # another machine may have finished some
      if left and (any(cell.holder for cell in left) or not self.is_taught(group)):
        continue
      self.pending.remove(group)
      if not left:
        continue
      try:
        free[-1].launch(left)
        free.pop()
      except OSError as error:  # the folder cannot be written, ...
        self.fail(left, one_line(error))

  def is_taught(self, group: list[Cell]) -> bool:
    """Whether the group's teacher, if any, is finished; fails the cells if it never will be."""
    teacher = group[0].teacher
    if not teacher:
      return True
    if any(other.run.path == teacher.path for other in [*self.running, *self.waiting]):
      return False  # also if it has a result, which another run of it replaces
    with contextlib.suppress(ValueError):  # a damaged file
      if teacher.result:
        return True
    self.pending.remove(group)
    self.fail(group, f"its teacher, {teacher.path}, is neither finished nor to be run")
    return False

  def collect(self, slot: Slot) -> bool:
    """Handles a process that has ended; False if it is still running."""
    code, cells = slot.poll(), slot.cells
    if code is None:
      return False
    slot.share_log()
    if code == 0:
      for cell in cells:
        with contextlib.suppress(ValueError):  # a damaged file
          self._say(f"finished: {cell.name}{outcome(cell)}")
    elif code == INTERRUPTED or any(c.holder or is_finished(c) for c in cells):
      self.pending.append(cells)  # they can be resumed, or another machine has taken them
    else:
      failed = [cell for cell in cells if cell.current.failure] or cells
      self.fail(failed, slot.reason(code, failed))
      if left := [cell for cell in cells if cell not in failed]:
        self.pending.append(left)
    slot.process, slot.cells = None, []
    return True

  def fail(self, cells: Sequence[Cell], reason: str) -> None:
    for cell in cells:
      self.failed.append(cell.name)
      self._say(f"failed: {cell.name}: {reason}")

  def stop(self) -> None:
    """Stops all processes by SIGTERM, with checkpoints; at a second signal by SIGKILL."""
    busy = self.busy
    self.pending = [*(slot.cells for slot in busy), *self.pending]
    self._say(
      f"stopping {len(self.running)} runs, each with a checkpoint; a second signal kills them"
    )
    asked = len(self._signals)
    for slot in busy:
      slot.send(signal.SIGTERM)
    while any(slot.poll() is None for slot in busy):
      if len(self._signals) > asked:
        for slot in busy:
          slot.send(signal.SIGKILL)
      time.sleep(POLL_SECONDS)
    for slot in busy:
      slot.share_log()
      slot.process, slot.cells = None, []
    self.pending = [left for group in self.pending if (left := unfinished(group))]

  def line(self) -> str:
    """The progress: "12 of 45 runs done, 2 running, 0 failed, about 1:02:03 left"."""
    running, waiting = self.running, self.waiting
    for cell in self.cells if not self._status else [*running, *waiting]:
      with contextlib.suppress(ValueError):  # a damaged file
        self._status[cell.name] = status(cell.run)
    there = (self._status.get(cell.name) for cell in waiting)
    elsewhere = sum(one is not None and one.state == RUNNING for one in there)
    done = len(self.cells) - len(running) - len(waiting) - len(self.failed)
    parts = [f"{done} of {len(self.cells)} runs done", f"{len(running)} running"]
    parts += [f"{elsewhere} running elsewhere"] * bool(elsewhere)
    parts += [f"{len(self.failed)} failed"]
    if left := self.seconds_left([*(slot.cells for slot in self.busy), *self.pending]):
      parts.append(f"about {clock(left)} left")
    return ", ".join(parts)

  def seconds_left(self, groups: list[list[Cell]]) -> float | None:
    """The time left for these processes; None before any run has been evaluated.

    For a run, by its own speed; before its first evaluation, by the mean of the other runs of
    its entry, or of all runs.
    """
    took = defaultdict(list)
    for cell in self.cells:
      if (there := self._status.get(cell.name)) and there.whole:
        took[cell.entry].append(there.whole)
    if not took:
      return None
    mean = statistics.mean(itertools.chain(*took.values()))
    total = 0.0
    for cell, *_ in groups:
      left = there.left if (there := self._status.get(cell.name)) else None
      total += statistics.mean(took.get(cell.entry, [mean])) if left is None else left
    return total / min(len(self.slots), max(len(groups), 1))


def outcome(cell: Cell) -> str:
  """The result of a finished cell in words; "" if it has several generations."""
  if not (result := cell.run.result):
    return ""
  best = result["best_single"]
  return (
    f": best single network {best['reader']} {best['accuracy']:.4f} at epoch "
    f"{best['epoch']:g}, chosen on {best['chosen_on']}"
  )


# Processes.


class Slot:
  """A place for one process at a time, with its share of the cores and GPUs."""

  def __init__(self, cores: list[int] | None, environment: dict[str, str]):
    self.cells: list[Cell] = []
    self.process: subprocess.Popen[bytes] | None = None
    self.cores, self._environment = cores, environment
    self._log_began = 0

  def launch(self, cells: list[Cell]) -> None:
    """Starts `okdph train` for the cells; its output goes to the log.txt of the first one."""
    for cell in cells:
      cell.current.path.mkdir(parents=True, exist_ok=True)
      (cell.current.path / ERROR).unlink(missing_ok=True)  # of an earlier start
    with open(cells[0].run.path / LOG, "ab") as log:
      self._log_began = log.tell()
      self.process = subprocess.Popen(
        prepared([*PROGRAM, *arguments(cells)], self.cores),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | self._environment,
        start_new_session=True,  # only the sweep gets Ctrl-C, and stops the runs
      )
    self.cells = cells

  def poll(self) -> int | None:
    """The exit code if the process has ended, else None."""
    return self.process.poll() if self.process else None

  def send(self, number: int) -> None:
    if self.process:
      self.process.send_signal(number)

  def printed(self) -> bytes:
    """What the process has printed so far, from the first cell's log.txt."""
    with open(self.cells[0].run.path / LOG, "rb") as log:
      log.seek(self._log_began)
      return log.read()

  def share_log(self) -> None:
    """Adds the output of the process to the log.txt of its other cells."""
    for cell in self.cells[1:]:
      with contextlib.suppress(OSError), open(cell.run.path / LOG, "ab") as log:
        log.write(self.printed())

  def reason(self, code: int, failed: Sequence[Cell]) -> str:
    """Why the process failed, in one line; also writes it to the error.txt of these cells."""
    lines = [
      line for line in self.printed().decode(errors="replace").splitlines() if line.strip()
    ]
    last = lines[-1].removeprefix("okdph_jax: ") if lines else "it printed nothing"
    if code < 0:
      last = f"killed by {signal.Signals(-code).name}; its last line: {last}"
    for cell in failed:
      if not cell.current.failure:
        cell.current.write_failure(last)
    return last


def slots(jobs: int) -> list[Slot]:
  """One slot per job, each with an equal share of the cores that this process may use.

  If CUDA_VISIBLE_DEVICES is set, its devices are shared in the same way.

  Raises:
    ValueError: there are fewer cores or devices than jobs.
  """
  if jobs == 1:
    return [Slot(None, {})]
  cores: Sequence[list[int] | None] = [None] * jobs
  if sys.platform == "linux":
    cores = _parts("cores", sorted(os.sched_getaffinity(0)), jobs)
  if not (visible := os.environ.get(VISIBLE)):
    return [Slot(part, {}) for part in cores]
  devices = _parts(f"devices in {VISIBLE}", visible.split(","), jobs)
  return [
    Slot(part, {VISIBLE: ",".join(own)}) for part, own in zip(cores, devices, strict=True)
  ]


def _parts(what, all_of_them, jobs):
  size = len(all_of_them) // jobs
  if not size:
    raise ValueError(
      f"--jobs={jobs}, but there are only {len(all_of_them)} {what}; choose at most that many"
    )
  return [all_of_them[k * size : (k + 1) * size] for k in range(jobs)]
