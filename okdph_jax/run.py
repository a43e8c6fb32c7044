"""A run directory: reads and writes its files, see docs/run-directory.md.

Reading config, metrics and result needs no JAX: reports use it where JAX is not installed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from okdph_jax import files, saved_config

if TYPE_CHECKING:  # they import JAX
  from flax import linen as nn

  from okdph_jax.core import Learner
  from okdph_jax.methods.protocol import Method
  from okdph_jax.trained_network import TrainedNetwork
  from okdph_jax.training.checkpoint import Checkpoints

Number = (int, float)

# What the files contain at least, see `files.Shape`.
CONFIG_SHAPE = {
  "network": str,
  "epochs": int,
  "seed": int,
  "data": {"name": str},
  "method": {"name": str},
  "wrappers": list,
}
RECORD_SHAPE = {"config": CONFIG_SHAPE, "environment": dict}
MEASURED_SHAPE = {  # of config["data"], after the data were read
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


class Result(NamedTuple):
  """A finished run."""

  run: Run
  readers: dict[str, dict[str, Any]]  # {name: {"single", "last", "best", "best_epoch", ...}}
  best_single: dict[str, Any]  # {"reader", "accuracy", "epoch", "chosen_on"}
  numbers: dict[str, Any]  # all of result.json; accuracies are fractions


class Run:
  """A run directory: its files, its lock, and its trained networks.

      >>> run = Run(workdir)
      >>> run.config["method"]["name"], run.lines[-1]["epoch"]
      ('dml', 2.0)
      >>> accuracy = run.result["best_single"]["accuracy"]
      >>> network = run.network("student_1")  # a TrainedNetwork; needs no data

  Checkpoints are plain Orbax, and can be read without this package: `latest` and `best` are
  links to them. Every leaf of the students is [N, ...], one row for each of N students:

      >>> import orbax.checkpoint as ocp
      >>> state = ocp.StandardCheckpointer().restore(run.path.absolute() / "best")
      >>> state["learner"]["params"]["students"]["stem"]["entry"]["Conv_0"]["kernel"].shape
      (2, 3, 3, 1, 16)

  Making a `Run` reads and writes nothing; the folder need not exist.
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    self.path = Path(workdir)

  def __repr__(self):
    return f"Run({str(self.path)!r})"

  # Reading. A damaged file raises ValueError, in one line.

  @property
  def record(self) -> dict[str, Any] | None:
    """config.json: {"config", "environment", "class_names", ...}; None if there is no run."""
    return files.read_json(self.path / CONFIG, RECORD_SHAPE)

  @property
  def config(self) -> dict[str, Any] | None:
    """The resolved config as plain data; None if there is no run."""
    record = self.record
    return record and saved_config.completed(record["config"])

  def require_config(self) -> dict[str, Any]:
    """`config`, or ValueError, in one line, if there is no run."""
    config = self.config
    if config is None:
      raise ValueError(f"there is no run in {self.path}: it has no {CONFIG}")
    return config

  @property
  def class_names(self) -> tuple[str, ...]:
    """The names of the classes; "0" to "K-1" in runs of versions that did not record them."""
    classes = self.require_config()["data"]["classes"]
    return tuple((self.record or {}).get("class_names") or map(str, range(classes)))

  @property
  def planned_epochs(self) -> int | None:
    """The number of epochs before the run was extended; None if it was not."""
    return (self.record or {}).get("extended_from_epochs")

  @property
  def lines(self) -> list[dict[str, Any]]:
    """metrics.jsonl: one line per evaluation, without an incomplete last one."""
    return files.read_lines(self.path / METRICS, LINE_SHAPE)

  @property
  def training(self) -> list[dict[str, Any]]:
    """training.jsonl: losses of single steps, if `config.log_every_steps` is set."""
    return files.read_lines(self.path / TRAINING, STEP_SHAPE)

  @property
  def result(self) -> dict[str, Any] | None:
    """result.json; None until the run is finished."""
    return files.read_json(self.path / RESULT, RESULT_SHAPE)

  @property
  def finished(self) -> Result | None:
    """The `Result`; None until the run is finished."""
    result = self.result
    if result is None:
      return None
    return Result(self, result["readers"], result["best_single"], result)

  @property
  def failure(self) -> str | None:
    """error.txt: why the run failed, in one line; None if it did not, or was resumed."""
    try:
      return (self.path / ERROR).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
      return None

  @property
  def holder(self) -> str | None:
    """The process that writes to the run now, "process 123 on host"; None if there is none."""
    return files.lock_holder(self.path / LOCK)

  # Writing. In a pod only the leader writes.

  def write_record(
    self, config: Mapping[str, Any], environment: Mapping[str, Any], **more: Any
  ) -> None:
    """Writes config.json: the resolved config, the environment, and `more` entries."""
    if _is_leader():
      entries = {"config": config, "environment": environment} | more
      files.write_json(self.path / CONFIG, entries)

  def append(self, line: Mapping[str, Any]) -> None:
    """Adds an evaluation to metrics.jsonl."""
    if _is_leader():
      files.append_lines(self.path / METRICS, [line])

  def append_training(self, lines: Iterable[Mapping[str, Any]]) -> None:
    """Adds the losses of single steps to training.jsonl."""
    if _is_leader():
      files.append_lines(self.path / TRAINING, lines)

  def cut_after(self, step: int, *, evaluated: bool = True) -> None:
    """Removes lines of metrics.jsonl and training.jsonl that are later than `step`.

    evaluated: whether the evaluation at `step` itself is kept.
    """
    if not _is_leader():
      return
    last = step if evaluated else step - 1
    lines = [line for line in self.lines if line["step"] <= last]
    files.write_lines(self.path / METRICS, lines)
    if training := self.training:
      lines = [line for line in training if line["step"] <= step]
      files.write_lines(self.path / TRAINING, lines)

  def write_result(self, result: Mapping[str, Any]) -> None:
    """Writes result.json; then the run is finished."""
    if _is_leader():
      files.write_json(self.path / RESULT, result)

  def write_failure(self, reason: str) -> None:
    """Writes error.txt, in any process: why the run failed, in one line."""
    files.write(self.path / ERROR, reason + "\n")

  def reopen(self) -> None:
    """Removes result.json and error.txt: the run is neither finished nor failed."""
    if _is_leader():
      (self.path / RESULT).unlink(missing_ok=True)
      (self.path / ERROR).unlink(missing_ok=True)

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Locks the run for writing, and makes its folder.

    The operating system releases the lock when the process ends, even if it is killed. Locks
    work between machines on NFS (Linux, with lockd) and Lustre (mounted with -o flock); on file
    systems without locks a message is printed. In a pod the leader has the lock. At the end
    empty folders that were made here are removed.

    Raises:
      ValueError: in one line, if another process has the lock, or the folder cannot be written.
    """
    from okdph_jax.runtime import distributed

    held = refused = None
    made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
    if distributed.is_leader():
      try:
        held = files.lock(self.path / LOCK)
      except ValueError as error:
        refused = error
    if distributed.any_process(refused is not None):
      raise refused or ValueError(f"the leader of the pod could not lock {self.path}")
    if held:
      for half_written in self.path.glob("*.tmp"):  # by a process that was killed
        half_written.unlink()
    try:
      yield
    finally:
      if held:
        (self.path / LOCK).unlink(missing_ok=True)
        held.close()
        with contextlib.suppress(OSError):  # not empty, as usual
          for folder in dict.fromkeys((self.path, *made)):
            folder.rmdir()

  # Checkpoints, snapshots, networks.

  def checkpoints(self) -> Checkpoints:
    """The run's `Checkpoints`, to save and restore states; a context manager."""
    from okdph_jax.training.checkpoint import Checkpoints

    return Checkpoints(self.path)

  @property
  def checkpoint_steps(self) -> set[int]:
    """The steps of all checkpoints."""
    return {int(f.name) for f in (self.path / "checkpoints").glob("*") if f.name.isdigit()}

  @property
  def snapshots(self) -> dict[int, Path]:
    """{step: folder} of the saved copies of the learner, in order."""
    folders = list((self.path / "snapshots").glob("*"))
    found = {int(f.name[5:]): f for f in folders if re.fullmatch(r"step_\d+", f.name)}
    old = [f for f in folders if f.name.isdigit()]  # earlier versions named them by epoch
    if old and (lines := self.lines):
      epoch_steps = round(lines[-1]["step"] / lines[-1]["epoch"])
      found |= {int(f.name) * epoch_steps: f for f in old}
    return dict(sorted(found.items()))

  def snapshot(self, step: int, learner: Learner) -> None:
    """Saves a copy of the learner at `step`, for analyses."""
    from okdph_jax.training import checkpoint

    checkpoint.snapshot(self.path / "snapshots" / f"step_{step}", learner)

  def chosen(self, which: str | None = None) -> tuple[str, int]:
    """(which, step) of a checkpoint.

    which: "last", "best-validation" or "best-test". By default the best on validation, or
    without a validation split the last: the test set is used only on request.

    Raises:
      ValueError: in one line, if there is no such checkpoint.
    """
    from okdph_jax.training import checkpoint

    validated = any(line["accuracy"].get("validation") for line in self.lines)
    best = BEST_VALIDATION if validated else BEST_TEST
    which = which or (best if validated else LAST)
    if which not in WHICH:
      raise ValueError(f"{which!r} is not a checkpoint; there are {', '.join(WHICH)}")
    if which not in (LAST, best):
      reason = (
        "its best was chosen on validation" if validated else "it has no validation split"
      )
      raise ValueError(
        f"{self.path} has no checkpoint {which}: {reason}; choose {best} or {LAST}"
      )
    step = checkpoint.stored(self.path, best=which != LAST)
    if step is None:
      raise ValueError(f"{self.path} has no checkpoint yet; wait for its first evaluation")
    return which, step

  def learner(self, which: str | None = None) -> Learner:
    """The `Learner` of a checkpoint as NumPy arrays. which: see `chosen`."""
    from okdph_jax.training import checkpoint

    return checkpoint.learner_at(self.path, self.chosen(which)[1])

  def method(self, network: str | None = None) -> tuple[nn.Module, Method]:
    """(network, method) of the run, to read the networks of its learners; no data are needed.

    network: see `Run.network`.
    """
    from okdph_jax import methods, models
    from okdph_jax.methods.protocol import Context

    config = self.require_config()
    if wrong := files.misfit(config["data"], MEASURED_SHAPE, "config.data"):
      raise ValueError(f"{self.path / CONFIG}: {wrong}; restore it, or choose another folder")
    name, classes = config["network"], len(self.class_names)
    if ":" in name and name != network:
      raise ValueError(
        f"the run in {self.path} has a user-defined network, {name}, whose code is imported "
        "only if you name it too: network=... in Python; config.network, or for a teacher "
        "config.teacher_network, in a config"
      )
    net = models.build(name, classes, config["network_options"])
    # For reading networks, the teacher's variables and the steps in an epoch have no effect.
    context = Context(net, classes, 1, config["epochs"], teacher=(net, {}))
    return net, methods.assemble(context, config["method"], config["wrappers"])

  def network(
    self, reader: str | None = None, which: str | None = None, network: str | None = None
  ) -> TrainedNetwork:
    """A trained network of the run; no data are needed.

    reader: "student_0", "hybrid", ...; "ensemble" is one network with the mean of the students'
      logits. By default the single network with the highest validation accuracy at the chosen
      step, or without a validation split the method's first.
    which: "last", "best-validation" or "best-test", see `chosen`.
    network: a user-defined network by dotted path, "my_pkg.nets:SmallNet". Its code is imported
      only because you name it here, never because a file of the run does.

    Raises:
      ValueError: in one line, if there is no such network, or if it cannot be read.
    """
    from okdph_jax.models.ensemble import together
    from okdph_jax.trained_network import TrainedNetwork
    from okdph_jax.training import checkpoint, logbook

    net, method = self.method(network)
    which, step = self.chosen(which)
    networks = method.networks(checkpoint.learner_at(self.path, step))
    line = max(
      (x for x in self.lines if x["step"] <= step), key=lambda x: x["step"], default={}
    )
    if not reader:
      validated = line.get("accuracy", {}).get("validation")
      reader = logbook.best_single(line, networks)[1] if validated else next(iter(networks))
    students = [v for name, v in networks.items() if name.startswith("student_")]
    if reader == "ensemble" and len(students) > 1:
      net, networks[reader] = together(net, students)
    if reader not in networks:
      raise ValueError(
        f"the run in {self.path} has no single network {reader!r}; it has {', '.join(networks)}"
      )
    config = self.require_config()
    data = config["data"]
    trained = TrainedNetwork(
      module=net,
      variables=networks[reader],
      class_names=self.class_names,
      image_shape=tuple(data["image"]),
      mean=tuple(data["normalisation"]["mean"]),
      std=tuple(data["normalisation"]["std"]),
      test_view=config["test_view"],
      reader=reader,
      origin=f"{reader} of the {config['network']} in {self.path}, step {step} ({which})",
    )
    trained.check()
    return trained


def load(
  workdir: str | os.PathLike[str],
  reader: str | None = None,
  which: str | None = None,
  network: str | None = None,
) -> TrainedNetwork:
  """A trained network of the run in `workdir`; prints which one it is.

  Arguments as in `Run.network`. By default the best single network on validation or, without a
  validation split, the method's first one in the last checkpoint.

      >>> network = load(workdir, "student_0")
      student_0 of the resnet8 in ..., step ... (last): images 8x8x1, 3 classes
      >>> logits = network(images)
      >>> network.predict(images)[0] in network.class_names
      True

  Raises:
    ValueError: in one line, if there is no such network.
  """
  found = Run(workdir).network(reader, which, network)
  print(f"{found.origin}: {found.about}")
  return found


def parse_reference(text: str, option: str) -> tuple[Run, str | None, str | None]:
  """Parses "DIR[:READER][@WHICH]", a network of a finished run: (run, reader, which).

  option: the name of the option that has this value, for messages.

  Raises:
    ValueError: in one line, if there is no finished run in DIR.
  """
  match = re.fullmatch(r"(.+?)(?::(\w+))?(?:@([\w-]+))?", text)
  folder, reader, which = match.groups() if match else (text, None, None)
  run = Run(folder)
  if not run.path.is_dir():
    raise ValueError(f"{option}={text}: there is no folder {folder}")
  if run.result is None:
    raise ValueError(
      f"{option}={text}: the run in {folder} is not finished, it has no {RESULT}; finish it "
      "first, or name another run"
    )
  return run, reader, which


def _is_leader():
  from okdph_jax.runtime import distributed  # imports JAX, which reading does not need

  return distributed.is_leader()
