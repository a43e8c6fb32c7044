"""A run: the folder that holds all of it, and everything that is read from or written to it.

Reading config, metrics and result needs no JAX: reports use it where JAX is not installed.
docs/run-directory.md describes every file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from okdph_jax.errors import DiskError, one_line, shown

if TYPE_CHECKING:  # they import JAX
  from okdph_jax.core import Learner
  from okdph_jax.trained_network import TrainedNetwork
  from okdph_jax.training.checkpoint import Checkpoints

Number = (int, float)

# What the files hold at least: {key: type or shape}; {str: ...} has any keys.
CONFIG_SHAPE = {
  "network": str,
  "epochs": int,
  "seed": int,
  "data": {"name": str},
  "method": {"name": str},
  "wrappers": list,
}
RECORD_SHAPE = {"config": CONFIG_SHAPE, "environment": dict}
MEASURED_SHAPE = {  # of config.data, once the data were read
  "classes": int,
  "image": list,
  "normalisation": {"mean": list, "std": list},
}
LINE_SHAPE = {
  "step": int,
  "epoch": Number,
  "seconds": Number,
  "losses": dict,
  "accuracy": {"test": {str: Number}},
}
STEP_SHAPE = {"step": int, "epoch": Number, "losses": dict}
RESULT_SHAPE = {
  "config": CONFIG_SHAPE,
  "seed": int,
  "epochs": int,
  "evaluations": int,
  "readers": {str: {"single": bool, "last": Number, "best": Number, "best_epoch": Number}},
  "best_single": {"reader": str, "accuracy": Number, "epoch": Number, "chosen_on": str},
}

CONFIG, METRICS, RESULT, LOCK = "config.json", "metrics.jsonl", "result.json", "lock"
ERROR, LOG = "error.txt", "log.txt"
TRAINING = "training.jsonl"

LAST, BEST_VALIDATION, BEST_TEST = WHICH = ("last", "best-validation", "best-test")

# Options that change no number: where the data lie, how often a run saves, what else it logs.
MAY_DIFFER = {"data.dir", "checkpoint_every_minutes", "log_every_steps"}

# Options of where a run computes, which change its last bits at most.
LAST_BITS = {"devices", "student_groups", "steps_per_dispatch", "views_on"}

# Options that runs of earlier versions lack, with the value that those runs had.
ADDED = {
  "network_options": {},
  "init_from": "",
  "teacher_network": "",
  "test_view": "plain",
  "log_every_steps": 0,
  "accumulate": 1,
  "batch_norm_images": None,
  "compute": "float32",
  "views_on": "device",
  "nesterov": False,
  "student_groups": 1,
  "steps_per_dispatch": 1,
}
ADDED_DATA = {"seed": 42, "normalise_as": ""}
ADDED_METHOD = {"okdph": {"hybrid_teaches": True}}


class Result(NamedTuple):
  """A finished run."""

  run: Run
  readers: dict[str, dict[str, Any]]  # {name: {"single", "last", "best", "best_epoch", ...}}
  best_single: dict[str, Any]  # {"reader", "accuracy", "epoch", "chosen_on"}
  numbers: dict[str, Any]  # all of result.json; accuracies are fractions


class Run:
  """A run directory: what is in it, the lock that guards it, and its trained networks.

      >>> run = Run(workdir)
      >>> run.config["method"]["name"], run.lines[-1]["epoch"]
      ('dml', 2.0)
      >>> accuracy = run.result["best_single"]["accuracy"]
      >>> network = run.network("student_1")  # a TrainedNetwork; needs no data

  Checkpoints are plain Orbax. `latest` and `best` are links to them, which can be read without
  this package; every leaf of the students is [N, ...], one row for each of N students:

      >>> import orbax.checkpoint as ocp
      >>> state = ocp.StandardCheckpointer().restore(run.path.absolute() / "best")
      >>> state["learner"]["params"]["students"]["stem"]["entry"]["Conv_0"]["kernel"].shape
      (2, 3, 3, 1, 16)

  Opening a Run touches nothing; the folder need not exist.
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    self.path = Path(workdir)

  def __repr__(self):
    return f"Run({str(self.path)!r})"

  # What was asked for, and what came out.

  @property
  def record(self) -> dict[str, Any] | None:
    """config.json: {"config", "environment", "class_names", ...}, or None before the start."""
    return _read_json(self.path / CONFIG, RECORD_SHAPE)

  @property
  def config(self) -> dict[str, Any] | None:
    """The resolved config as plain data, or None before the run has started."""
    record = self.record
    return record and completed(record["config"])

  def require_config(self) -> dict[str, Any]:
    """`config`, or a ValueError in one line where there is no run."""
    config = self.config
    if config is None:
      raise ValueError(f"there is no run in {self.path}: it has no {CONFIG}")
    return config

  @property
  def class_names(self) -> tuple[str, ...]:
    """The names of the classes, "0" to "K-1" in runs that have not recorded them."""
    classes = self.require_config()["data"]["classes"]
    return tuple((self.record or {}).get("class_names") or map(str, range(classes)))

  @property
  def planned_epochs(self) -> int | None:
    """The epochs that the run was planned for, if it was extended since; else None."""
    return (self.record or {}).get("extended_from_epochs")

  @property
  def lines(self) -> list[dict[str, Any]]:
    """The evaluations in metrics.jsonl, without a last line that a kill tore.

    Raises:
      ValueError: a line that is not the last is no evaluation.
    """
    return _read_lines(self.path / METRICS, LINE_SHAPE)

  @property
  def training(self) -> list[dict[str, Any]]:
    """The losses of single steps in training.jsonl, none without `config.log_every_steps`."""
    return _read_lines(self.path / TRAINING, STEP_SHAPE)

  @property
  def result(self) -> dict[str, Any] | None:
    """result.json, which a finished run has, or None."""
    return _read_json(self.path / RESULT, RESULT_SHAPE)

  @property
  def finished(self) -> Result | None:
    """The `Result`, or None while the run is not finished."""
    result = self.result
    if result is None:
      return None
    return Result(self, result["readers"], result["best_single"], result)

  @property
  def failure(self) -> str | None:
    """Why the run failed, in one line, or None; gone as soon as it goes on."""
    path = self.path / ERROR
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None

  @property
  def holder(self) -> str | None:
    """Who writes to the run now, "process 123 on host", or None."""
    try:
      with open(self.path / LOCK, encoding="utf-8") as file:
        try:
          fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
          return file.read().strip() or "another process"
    except OSError:  # there is no lock, or a file system without locks
      pass
    return None

  # Writing. In a pod one process writes; a file is written whole or not at all.

  def write_record(
    self, config: Mapping[str, Any], environment: Mapping[str, Any], **more: Any
  ) -> None:
    """Writes config.json: the resolved config, and what else a reader of the run needs."""
    _replace(self.path / CONFIG, _pretty({"config": config, "environment": environment} | more))

  def append(self, line: Mapping[str, Any]) -> None:
    """Adds an evaluation to metrics.jsonl."""
    _append(self.path / METRICS, [line])

  def append_training(self, lines: Iterable[Mapping[str, Any]]) -> None:
    """Adds the losses of single steps to training.jsonl."""
    _append(self.path / TRAINING, lines)

  def cut_after(self, step: int, *, evaluated: bool = True) -> None:
    """Removes the lines later than `step`, and torn last ones.

    evaluated: whether the evaluation at `step` itself is kept.
    """
    last = step if evaluated else step - 1
    _rewrite(self.path / METRICS, [line for line in self.lines if line["step"] <= last])
    if training := self.training:
      _rewrite(self.path / TRAINING, [line for line in training if line["step"] <= step])

  def write_result(self, result: Mapping[str, Any]) -> None:
    """Writes result.json, which says that the run is finished."""
    _replace(self.path / RESULT, _pretty(result))

  def write_failure(self, reason: str) -> None:
    """Writes error.txt, in one line: the run has failed."""
    _write_whole(self.path / ERROR, reason + "\n")

  def reopen(self) -> None:
    """Removes result.json and error.txt: the run is neither finished nor failed."""
    if _writes():
      (self.path / RESULT).unlink(missing_ok=True)
      (self.path / ERROR).unlink(missing_ok=True)

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Holds the run for writing, from any other process; makes the folder.

    The operating system drops the lock when its holder ends, however it ends, so a killed
    process never bars the next. Network file systems: NFS (Linux, with lockd) and Lustre
    (mounted with -o flock) keep it between machines; where a file system has no locks, a
    line says so and nothing is guarded. In a pod the leading process alone takes it.

    Raises:
      ValueError: another process holds the run, or the folder cannot be written.
    """
    from okdph_jax.runtime import distributed

    held = refused = None
    made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
    if distributed.is_leader():
      try:
        held = _lock(self.path)
      except ValueError as error:
        refused = error
    if distributed.any_process(refused is not None):
      raise refused or ValueError(f"the leading process could not lock {self.path}")
    if held:
      for half_written in self.path.glob("*.tmp"):  # by a process that was killed
        half_written.unlink()
    try:
      yield
    finally:
      if held:
        (self.path / LOCK).unlink(missing_ok=True)
        held.close()
        with contextlib.suppress(OSError):  # it is not empty: the usual case
          for folder in dict.fromkeys((self.path, *made)):
            folder.rmdir()

  # Checkpoints, snapshots, networks.

  def checkpoints(self) -> Checkpoints:
    """The run's `Checkpoints`, to save and restore states; close it."""
    from okdph_jax.training.checkpoint import Checkpoints

    return Checkpoints(self.path)

  @property
  def snapshots(self) -> dict[int, Path]:
    """{step: folder} of the kept copies of the learner, in order."""
    folders = list((self.path / "snapshots").glob("*"))
    found = {int(f.name[5:]): f for f in folders if re.fullmatch(r"step_\d+", f.name)}
    old = [f for f in folders if f.name.isdigit()]  # earlier versions named them by epoch
    if old and (lines := self.lines):
      epoch_steps = round(lines[-1]["step"] / lines[-1]["epoch"])
      found |= {int(f.name) * epoch_steps: f for f in old}
    return dict(sorted(found.items()))

  def snapshot(self, step: int, learner: Learner) -> None:
    """Keeps a copy of the learner as of `step`, for analyses."""
    from okdph_jax.training import checkpoint

    checkpoint.snapshot(self.path / "snapshots" / f"step_{step}", learner)

  def chosen(self, which: str | None = None) -> tuple[str, int]:
    """(which, step) of the checkpoint that `which` names.

    By default the best on validation where the run has a validation split, else the last:
    the test set never chooses unless it is asked to.

    Raises:
      ValueError: there is no such checkpoint.
    """
    from okdph_jax.training import checkpoint

    validated = any(line["accuracy"].get("validation") for line in self.lines)
    best = BEST_VALIDATION if validated else BEST_TEST
    which = which or (best if validated else LAST)
    if which not in WHICH:
      raise ValueError(f"{which!r} is not a checkpoint; there are {', '.join(WHICH)}")
    if which not in (LAST, best):
      reason = "it chose on its validation split" if validated else "it has no validation split"
      raise ValueError(
        f"{self.path} has no checkpoint {which}: {reason}; take {best} or {LAST}"
      )
    step = checkpoint.stored(self.path, best=which != LAST)
    if step is None:
      raise ValueError(f"{self.path} has no checkpoint yet; let the run reach an evaluation")
    return which, step

  def learner(self, which: str | None = None) -> Learner:
    """The `Learner` of the checkpoint that `which` names, see `chosen`, as NumPy arrays."""
    from okdph_jax.training import checkpoint

    return checkpoint.learner_at(self.path, self.chosen(which)[1])

  def network(
    self, reader: str | None = None, which: str | None = None, network: str | None = None
  ) -> TrainedNetwork:
    """One trained network of the run, as a `TrainedNetwork`; no data are needed.

    reader: "student_0", "hybrid", ...; by default the single network that is best on
      validation at the chosen step, or without a validation split the method's first.
      "ensemble" is all students as one network with the mean of their logits.
    which: "last", "best-validation" or "best-test", see `chosen`.
    network: the run's own network by dotted path, "my_pkg.nets:SmallNet". A run's files never
      make this package import code: where `config.network` is not one of ours, you name it.

    Raises:
      ValueError: in one line, where there is no such network.
    """
    from okdph_jax import methods, models
    from okdph_jax.methods.protocol import Context
    from okdph_jax.models.ensemble import together
    from okdph_jax.trained_network import TrainedNetwork
    from okdph_jax.training import checkpoint, logbook

    config = self.require_config()
    if wrong := misfit(config["data"], MEASURED_SHAPE, "config.data"):
      raise ValueError(f"{self.path / CONFIG}: {wrong}; restore it, or choose another folder")
    name, data, names = config["network"], config["data"], self.class_names
    if ":" in name and name != network:
      raise ValueError(
        f"the run in {self.path} has a network of its own, {name}, whose code is imported only "
        "if you name it too: network=... in Python; in a config config.network, or for a "
        "teacher config.teacher_network"
      )
    which, step = self.chosen(which)
    net = models.build(name, len(names), config["network_options"])
    # It is only read: what taught it, and for how long an epoch was, no longer matters.
    context = Context(net, len(names), 1, config["epochs"], teacher=(net, {}))
    method = methods.assemble(context, config["method"], config["wrappers"])
    networks = method.networks(checkpoint.learner_at(self.path, step))
    line = max(
      (x for x in self.lines if x["step"] <= step), key=lambda x: x["step"], default={}
    )
    if not reader:
      validated = line.get("accuracy", {}).get("validation")
      reader = logbook.best_single(line, networks)[1] if validated else next(iter(networks))
    students = [network for name, network in networks.items() if name.startswith("student_")]
    if reader == "ensemble" and len(students) > 1:
      net, networks[reader] = together(net, students)
    if reader not in networks:
      raise ValueError(
        f"the run in {self.path} has no single network {reader!r}; it has {', '.join(networks)}"
      )
    trained = TrainedNetwork(
      module=net,
      variables=networks[reader],
      class_names=names,
      image_shape=tuple(data["image"]),
      mean=tuple(data["normalisation"]["mean"]),
      std=tuple(data["normalisation"]["std"]),
      test_view=config["test_view"],
      origin=f"{reader} of the {name} in {self.path}, step {step} ({which})",
    )
    trained.check()
    return trained


def load(
  workdir: str | os.PathLike[str],
  reader: str | None = None,
  which: str | None = None,
  network: str | None = None,
) -> TrainedNetwork:
  """A trained network of the run in `workdir`: a `TrainedNetwork`; prints which it took.

  Arguments as in `Run.network`: by default the best single network on validation or, without
  a validation split, the method's first one as the last checkpoint has it.

      >>> network = load(workdir, "student_0")
      student_0 of the resnet8 in ..., step ... (last): images 8x8x1, 3 classes
      >>> logits = network(images)
      >>> network.predict(images)[0] in network.class_names
      True

  Raises:
    ValueError: in one line, where there is no such network.
  """
  found = Run(workdir).network(reader, which, network)
  print(f"{found.origin}: {found.about}")
  return found


def named(text: str, option: str) -> tuple[Run, str | None, str | None]:
  """(run, reader or None, which or None) of "DIR[:READER][@WHICH]"; the run is finished.

  Raises:
    ValueError: in one line that names `option`.
  """
  match = re.fullmatch(r"(.+?)(?::(\w+))?(?:@([\w-]+))?", text)
  folder, reader, which = match.groups() if match else (text, None, None)
  run = Run(folder)
  if not run.path.is_dir():
    raise ValueError(f"{option}={text}: there is no folder {folder}")
  if run.result is None:
    raise ValueError(
      f"{option}={text}: the run in {folder} is not finished, it has no {RESULT}; finish it, "
      "or name another --workdir"
    )
  return run, reader, which


# Comparing configs.


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """["key: old -> new", ...] of two configs: empty where one run may go on as the other.

  Keys are flattened ("data.fraction"); those of `MAY_DIFFER` and `LAST_BITS` are ignored, and
  tuples equal lists, because JSON knows no tuples. A single view equals as many of it as there
  are networks.
  """
  old, new = flat(completed(old)), flat(completed(new))
  for config in (old, new):
    if len(set(config.get("views", ()))) == 1:
      config["views"] = config["views"][:1]
  keys = sorted((old.keys() | new.keys()) - MAY_DIFFER - LAST_BITS)

  def show(config, key):
    return json.dumps(config[key]) if key in config else "absent"

  return [
    f"{key}: {show(old, key)} -> {show(new, key)}"
    for key in keys
    if show(old, key) != show(new, key)
  ]


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config with the options that runs of its version did not have yet."""
  method = config.get("method", {})
  return {
    **ADDED,
    **config,
    "data": ADDED_DATA | config.get("data", {}),
    "method": ADDED_METHOD.get(method.get("name"), {}) | method,
  }


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """{"data": {"name": x}} -> {"data.name": x}; values as JSON gives them back."""
  return dict(_items(json.loads(json.dumps(config))))


def _items(config, prefix=""):
  for key, value in config.items():
    if isinstance(value, dict) and value:
      yield from _items(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


# Files.


def _read_json(path, shape):
  try:
    text = path.read_bytes()
  except (FileNotFoundError, NotADirectoryError):
    return None
  return _parsed(text, path, shape)


def _parsed(text: bytes, where: Any, shape: Any) -> Any:
  """JSON of that shape; ValueError, in one line, for anything else."""
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
    wrong = f"it is not JSON ({one_line(error, 80)})"
  else:
    wrong = misfit(found, shape)
    if not wrong:
      return found
  raise ValueError(f"{where}: {wrong}; restore the file, or choose another folder") from None


def misfit(value: Any, shape: Any, name: str = "it") -> str | None:
  """What of a `value` from JSON is not as `shape` says; None where all is."""
  if isinstance(shape, dict):
    if not isinstance(value, dict):
      return f"{name} is {shown(value, 40)}, and not a group of values"
    inner = dict.fromkeys(value, shape[str]) if str in shape else shape
    parts = [
      misfit(value[key], inner[key], key if name == "it" else f"{name}.{key}")
      if key in value
      else f"{name} has no {key!r}"
      for key in inner
    ]
    return next(filter(None, parts), None)
  kinds = shape if isinstance(shape, tuple) else (shape,)
  right = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
  if right and not (isinstance(value, float) and not math.isfinite(value)):
    return None
  return f"{name} is {shown(value, 40)}, and not {kinds[-1].__name__}"


def _pretty(tree):
  return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def _writes():
  """Whether this process is the one of its pod that writes."""
  from okdph_jax.runtime import distributed  # imports JAX, which reading does not need

  return distributed.is_leader()


def _replace(path, text):
  """Writes a file where this process is the one that writes."""
  if _writes():
    _write_whole(path, text)


def _write_whole(path, text):
  """Writes a file whole or not at all: a kill leaves the old one."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with _written(path), open(temporary, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _written(path):
  """Errors of writing as a `DiskError`."""
  try:
    yield
  except OSError as error:
    raise DiskError(
      f"{path} cannot be written: {error.strerror}; make room, and the same command resumes "
      "the run"
    ) from error


def _append(path, lines):
  if not _writes():
    return
  whole = _whole_lines(path)
  with _written(path), open(path, "ab") as file:
    file.truncate(len(whole))
    if whole and not whole.endswith(b"\n"):
      file.write(b"\n")
    for line in lines:
      file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _rewrite(path, lines):
  _replace(path, "".join(json.dumps(line) + "\n" for line in lines))


def _read_lines(path, shape):
  return [
    _parsed(text, f"{path}, line {number}", shape)
    for number, text in enumerate(_whole_lines(path).split(b"\n"), start=1)
    if text
  ]


def _whole_lines(path):
  """The file, as bytes, without a last line that a kill tore; it may lack its newline."""
  try:
    text = path.read_bytes()
  except FileNotFoundError:
    return b""
  end = text.rfind(b"\n") + 1
  with contextlib.suppress(ValueError):
    json.loads(text[end:])  # a part of a line would not be JSON
    return text
  return text[:end]


def _flock(file):
  """Takes the lock; it is refused only where somebody keeps it, and does not just look."""
  for wait in (0.05, 0.1, 0):
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if not wait:
        raise
      time.sleep(wait)


def _lock(folder: Path) -> TextIO:
  """The open file that holds the lock of `folder`."""
  path = folder / LOCK
  while True:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      file = open(path, "a+", encoding="utf-8")
    except OSError as error:
      raise ValueError(
        f"cannot write to --workdir={folder}: {error.strerror}; choose another folder"
      ) from error
    try:
      _flock(file)
    except BlockingIOError:
      with file:
        file.seek(0)
        holder = file.read().strip() or "another process"
      raise ValueError(
        f"{holder} is writing to {folder}; wait until it ends, or choose another --workdir"
      ) from None
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
        raise
      print(f"{folder}: this file system has no locks; start no second process on this run")
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
      break
    file.close()  # its holder has just ended and removed it: there is a new one to take
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  file.flush()
  return file
