"""Checkpoints of a run, by Orbax: the latest two and the best."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from okdph_jax.core import Learner
from okdph_jax.errors import DiskError, disk_full, of_devices, one_line
from okdph_jax.runtime import distributed

ITEM = "state"
LATE_READS = ("Event loop is closed", "Encountered error while reading")  # tensorstore's errors


class Checkpoints(AbstractContextManager):
  """The checkpoints of one run, in `workdir/checkpoints/STEP`.

  It keeps the latest two, so that a run survives a damaged one, and the one with the highest
  accuracy, the earliest of equals. Each has a digest of its arrays, which detects bits that
  changed on disk. The links `workdir/latest` and `workdir/best` point to the arrays. Saves
  between evaluations run in the background: leave the `with` block, or call `close`, before
  the process ends.
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    policies = [
      checkpoint_managers.LatestN(2),
      # Without the last argument, checkpoints saved between evaluations are never deleted.
      checkpoint_managers.BestN(
        n=1, get_metric_fn=_best_single, keep_checkpoints_without_metrics=False
      ),
    ]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      best_fn=_best_single,  # without it Orbax writes no metrics
      cleanup_tmp_directories=True,  # of a save that was killed
    )
    self._workdir = Path(workdir).absolute()
    directory = self._workdir / "checkpoints"
    with distributed.leader_first():
      _discard_torn(directory)
    _silence_logs()
    # Without a name for the item, Orbax guesses the layout from the latest directory, and if
    # that is damaged it can read none of them.
    with _saving(directory):
      self._manager = ocp.CheckpointManager(directory, options=options, item_names=(ITEM,))

  def save(self, step: int, state: Any, accuracy: float | None = None) -> None:
    """Starts to save the `state` of `step`; the caller may donate its buffers at once.

    accuracy: a fraction, by which the best is chosen; None between evaluations. With an
    accuracy the checkpoint is on disk when `save` returns. An existing checkpoint of `step` is
    replaced only if it has no accuracy yet and one is given.
    """
    step = int(step)
    self._wait()
    if step in self._manager.all_steps():
      if accuracy is None or _accuracy(self._manager, step) is not None:
        return
      self._manager.delete(step)  # Orbax refuses to overwrite
    state = _on_host(state)
    metrics = {"accuracy": None if accuracy is None else float(accuracy), "step": step}
    metrics["digest"] = digest(state, metrics)
    args = ocp.args.Composite(**{ITEM: ocp.args.StandardSave(state)})
    with _saving(self._workdir):
      self._manager.save(step, args=args, metrics=metrics, force=True)
    if accuracy is not None:
      self._wait()

  def restore(self, state: Any, until: int | None = None) -> Any:
    """The state of the latest intact checkpoint, or None if there are no checkpoints.

    state: its structure, dtypes and shardings are those of the result; its values are ignored.
    until: checkpoints of later steps are ignored.

    Damaged checkpoints that are later than the one restored are deleted.

    Raises:
      ValueError: there are checkpoints, but none can be read into `state`.
    """
    self._wait()
    damaged = {}
    for step in sorted(self.steps, reverse=True):
      if until is not None and step > until:
        continue
      try:
        restored = self._read(step, state)
      except Exception as error:  # Orbax, tensorstore and zlib each raise their own
        if of_devices(error):  # the checkpoint is not damaged
          raise
        damaged[step] = error
        continue
      for later in damaged:
        print(f"checkpoint of step {later} is damaged: deleted, resuming from {step}")
        self._manager.delete(later)
      return restored
    if damaged:
      step, error = next(iter(damaged.items()))
      raise ValueError(
        f"no checkpoint in {self._manager.directory} fits this run; of steps "
        f"{sorted(damaged)} the latest says: {one_line(error)}; use another --workdir"
      )
    return None

  def discard_after(self, step: int) -> None:
    """Deletes the checkpoints of later steps."""
    for later in self.steps:
      if later > step:
        self._manager.delete(later)

  @property
  def steps(self) -> set[int]:
    """The steps of all checkpoints."""
    return set(self._manager.all_steps())

  @property
  def latest_step(self) -> int | None:
    """The step of the latest checkpoint, or None."""
    return self._manager.latest_step()

  @property
  def best_step(self) -> int | None:
    """The step of the highest accuracy, or None before any evaluation."""
    return _best_step(self._manager)

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._wait()
    self._manager.close()

  def __exit__(self, *_):
    self.close()

  def _wait(self):
    """Waits for the save in progress, then updates the links."""
    with _saving(self._workdir):
      self._manager.wait_until_finished()
    for name, step in (("latest", self.latest_step), ("best", self.best_step)):
      if step is not None and distributed.is_leader():
        _link(self._workdir / name, f"checkpoints/{step}/{ITEM}")

  def _read(self, step, state):
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_keys(state))
    restored = _restored(self._manager, step, ocp.args.StandardRestore(target))
    return jax.tree.map(_with_key, restored, state)


def digest(state: Any, metrics: Any) -> str:
  """A digest of a checkpoint's arrays and metrics; `state` is on the host."""
  found = hashlib.blake2b(repr([metrics["accuracy"], metrics["step"]]).encode(), digest_size=16)
  leaves = jax.tree_util.tree_leaves_with_path(state)
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves
  }
  for name, leaf in sorted(named.items()):
    found.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
    found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
  return found.hexdigest()


def _best_step(manager):
  step = manager.best_step()
  return None if step is None or _accuracy(manager, step) is None else step


def _accuracy(manager, step):
  return (manager.metrics(step) or {}).get("accuracy")


def _restored(manager, step, how):
  """The state of a checkpoint, checked against its digest; earlier versions saved none."""
  state = manager.restore(step, args=ocp.args.Composite(**{ITEM: how}))[ITEM]
  metrics = manager.metrics(step) or {}
  if "digest" in metrics and metrics["digest"] != digest(jax.device_get(state), metrics):
    raise ValueError("its arrays do not match its digest")
  return state


def _silence_logs() -> None:
  """Hides the pages that Orbax and tensorstore log, in any thread, about errors they raise too.

  They do so for a damaged file and for a full disk.
  """
  for logger in ("absl", "asyncio"):
    logging.getLogger(logger).addFilter(_not_of_orbax)
  if sys.unraisablehook is not _unraisable:
    sys.unraisablehook = _unraisable


def _not_of_orbax(record: logging.LogRecord) -> bool:
  text = record.pathname + record.getMessage()
  return "/orbax/" not in text and "OCDBT" not in text


def _unraisable(unraisable: Any) -> None:
  if not str(unraisable.exc_value).startswith(LATE_READS):
    sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _saving(directory: Path) -> Iterator[None]:
  """Errors of a save as a `DiskError`."""
  try:
    yield
  except Exception as error:  # Orbax and tensorstore each raise their own
    if of_devices(error):
      raise
    raise DiskError(
      f"a checkpoint cannot be written to {directory}: {disk_full(error) or one_line(error)}; "
      "earlier ones are kept: make room, and the same command resumes the run"
    ) from error


def _discard_torn(directory):
  """Deletes checkpoints whose metrics are damaged: with one of them Orbax opens none."""
  for file in directory.glob("*/metrics/metrics"):
    try:
      metrics = json.loads(file.read_bytes())
      _ = metrics["step"] + (metrics["accuracy"] or 0.0)
    except (ValueError, TypeError, KeyError):
      checkpoint = file.parent.parent
      print(f"checkpoint of step {checkpoint.name} is damaged: deleted")
      shutil.rmtree(checkpoint)


def _link(path, target):
  """Makes `path` a link to `target`; replaces an existing link atomically."""
  if path.is_symlink() and os.readlink(path) == target:
    return
  with contextlib.suppress(OSError):  # the file system has no links
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.symlink_to(target)
    temporary.replace(path)


def stored(workdir: str | os.PathLike[str], best: bool = False) -> int | None:
  """The step of a run's latest or best checkpoint, or None if there is none."""
  with _opened(workdir) as manager:
    return _best_step(manager) if best else manager.latest_step()


def learner_at(workdir: str | os.PathLike[str], step: int) -> Learner:
  """The learner in the checkpoint of `step`, as NumPy arrays; changes nothing on disk.

  Raises:
    ValueError: in one line, if it cannot be read.
  """
  try:
    with _opened(workdir) as manager:
      return Learner(**_restored(manager, step, ocp.args.StandardRestore())["learner"])
  except Exception as error:  # Orbax, tensorstore and zlib each raise their own
    raise ValueError(
      f"the checkpoint of step {step} in {workdir} cannot be read: {one_line(error)}"
    ) from error


def _opened(workdir: str | os.PathLike[str]) -> ocp.CheckpointManager:
  """The checkpoints of a run, read-only."""
  directory = Path(workdir).absolute() / "checkpoints"
  if not directory.is_dir():
    there = Path(workdir).is_dir()
    raise ValueError(f"{workdir} has no checkpoints" if there else f"there is no run {workdir}")
  _silence_logs()  # Orbax warns that it is read-only
  try:
    options = ocp.CheckpointManagerOptions(best_fn=_best_single, read_only=True)
    return ocp.CheckpointManager(directory, options=options, item_names=(ITEM,))
  except Exception as error:  # of damaged metrics
    raise ValueError(
      f"the checkpoints of {workdir} cannot be read: {one_line(error)}"
    ) from error


def snapshot(directory: str | os.PathLike[str], learner: Learner) -> None:
  """Saves a copy of the learner in `directory`, for analyses."""
  path = Path(directory).absolute()
  with _saving(path), ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, _on_host(learner), force=True)


def _best_single(metrics: Any) -> Any:
  """Higher is better; of equal accuracies the earlier step wins, as in `logbook.result`."""
  accuracy = metrics["accuracy"]
  return (-1.0 if accuracy is None else accuracy, -metrics["step"])


def _on_host(state):
  """A copy in host memory, because the caller's next step may reuse the buffers.

  On a CPU, `device_get` alone returns views of them.
  """
  return jax.tree.map(np.array, jax.device_get(_without_keys(state)))


def _is_key(x):
  return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(state):
  """`state` with the data of its typed PRNG keys, which Orbax cannot write."""
  return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _with_key(x, like):
  return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x
