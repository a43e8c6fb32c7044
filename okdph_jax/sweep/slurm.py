"""Submits cells as Slurm jobs, with submitit: `pip install '.[slurm]'`."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from okdph_jax.errors import one_line
from okdph_jax.sweep.cells import Cell, arguments, stacked
from okdph_jax.sweep.prepare import prepared
from okdph_jax.sweep.runner import PROGRAM, unfinished


class Train:
  """A job that trains cells in one process; submitit resubmits it when its time is up."""

  def __init__(self, command: Sequence[str]):
    self.command = command

  def __call__(self) -> None:
    self.process = subprocess.Popen(prepared(self.command))
    until_ended(self.process)
    if code := self.process.wait():
      raise RuntimeError(f"okdph train ended with exit code {code}: see the output above")

  def checkpoint(self) -> Any:
    """Called by submitit in a signal handler before the time is up; a new job resumes."""
    from submitit.helpers import DelayedSubmission

    self.process.terminate()
    until_ended(self.process)  # its checkpoint is saved
    return DelayedSubmission(Train(self.command))


def until_ended(process: subprocess.Popen[bytes]) -> None:
  """Waits until the process has ended, without the lock of `Popen.wait`.

  A signal handler that interrupts `Popen.wait` and calls it too would wait for itself.
  """
  with contextlib.suppress(ChildProcessError):  # its exit code has been read already
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def submit(cells: Sequence[Cell], root: Path, options: str, stack: int = 1) -> dict[str, str]:
  """Submits the cells that are neither finished nor running as job arrays: {name: job}.

  options: of submitit, "timeout_min=600,gpus_per_node=1,slurm_partition=gpu"; "cluster=local"
    starts processes on this machine. Cells with a teacher are in a second array, which waits.
  stack: one job trains at most so many cells that differ only in their seeds.

  Raises:
    ValueError: in one line, without submitit or Slurm, or for an unknown option.
  """
  try:
    import submitit
  except ImportError:
    raise ValueError("--slurm needs submitit: pip install '.[slurm]' in a checkout") from None
  given: dict[str, Any] = dict(_option(word) for word in options.split(",") if word)
  cluster = given.pop("cluster", "slurm")
  left: list[list[Cell]] = []
  to_come = set[Path]()
  for group in stacked([cell for cell in unfinished(cells) if not cell.holder], stack):
    teacher = group[0].teacher  # its cells come before those of its students
    if not teacher or teacher.path in to_come or teacher.result:
      left.append(group)
      to_come |= {cell.run.path for cell in group}
    else:
      names = ", ".join(cell.name for cell in group)
      print(f"not submitted: {names}: the teacher, {teacher.path}, is not finished")
  jobs: dict[str, Any] = {}
  try:
    executor = submitit.AutoExecutor(folder=root / "slurm", cluster=cluster)
    executor.update_parameters(name=root.name, **given)
    while left:
      to_come = {cell.run.path for group in left for cell in group}
      wave = [g for g in left if not g[0].teacher or g[0].teacher.path not in to_come]
      left = [group for group in left if group not in wave]
      if jobs and cluster == "slurm":
        teachers = [teacher.path.name for group in wave if (teacher := group[0].teacher)]
        ids = dict.fromkeys(jobs[name].job_id for name in teachers if name in jobs)
        dependency = "afterok:" + ":".join(ids)
        executor.update_parameters(slurm_additional_parameters={"dependency": dependency})
      elif jobs:
        for job in jobs.values():
          job.wait()
      submitted = executor.submit_array([Train([*PROGRAM, *arguments(g)]) for g in wave])
      for group, job in zip(wave, submitted, strict=True):
        jobs |= {cell.name: job for cell in group}
  except Exception as error:  # submitit may raise anything
    raise ValueError(f"--slurm={options}: {one_line(error)}") from error
  return {name: job.job_id for name, job in jobs.items()}


def _option(word):
  name, _, value = word.partition("=")
  return name, int(value) if value.isdigit() else value
