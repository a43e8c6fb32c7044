"""What a run writes about itself: config.json, metrics.jsonl, TensorBoard events, result.json.

Everything here is plain numbers and files; TensorFlow is imported where events are written.
"""

import json
import math
import os
from contextlib import AbstractContextManager

CONFIG, METRICS, RESULT = "config.json", "metrics.jsonl", "result.json"

# Where the data lie, and how often a run speaks or saves, change no number.
MAY_DIFFER = {"data.dir", "checkpoint_every_minutes"}


def write_config(workdir, config, environment):
  """Writes config.json: the resolved config, and versions, devices and cores beside it."""
  _replace(workdir, CONFIG, _pretty({"config": config, "environment": environment}))


def read_config(workdir):
  """{"config": ..., "environment": ...} as `write_config` left them, or None."""
  return _read_json(workdir, CONFIG)


def differing(old, new):
  """["key: old -> new", ...] of two configs: empty where one run may go on as the other.

  Keys are flattened ("data.fraction"); those of `MAY_DIFFER` are ignored, and tuples equal
  lists, because JSON knows no tuples. A single view equals as many of it as there are networks.
  """
  old, new = flat(old), flat(new)
  for config in (old, new):
    if len(set(config.get("views", ()))) == 1:
      config["views"] = config["views"][:1]
  keys = sorted((old.keys() | new.keys()) - MAY_DIFFER)

  def show(config, key):
    return json.dumps(config[key]) if key in config else "absent"

  return [
    f"{key}: {show(old, key)} -> {show(new, key)}"
    for key in keys
    if show(old, key) != show(new, key)
  ]


def flat(config):
  """{"data": {"name": x}} -> {"data.name": x}; values as JSON gives them back."""
  return dict(_items(json.loads(json.dumps(config))))


def _items(config, prefix=""):
  for key, value in config.items():
    if isinstance(value, dict) and value:
      yield from _items(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


class Logbook(AbstractContextManager):
  """metrics.jsonl, one line per evaluation, and the same numbers as TensorBoard events."""

  def __init__(self, workdir):
    self._workdir = workdir
    self._events = _events(workdir)

  def append(
    self,
    *,
    step,
    epoch,
    learning_rate,
    losses,
    accuracy,
    cross_entropy,
    seconds,
    images_per_second,
  ):
    """Writes one evaluation and returns it as the line that is now on disk.

    Args:
      step: updates done.
      epoch: epochs done.
      learning_rate: of the last update.
      losses: {name: mean since the last line}.
      accuracy: {"test": {reader: fraction}}, and "validation" likewise if there is one.
      cross_entropy: the same, in nats.
      seconds: of training since the run began, the parts before a resume included.
      images_per_second: since the last line.
    """
    line = {
      "step": int(step),
      "epoch": _number(epoch),
      "learning_rate": _number(learning_rate),
      "losses": {name: _number(loss) for name, loss in losses.items()},
      "accuracy": _by_split(accuracy),
      "cross_entropy": _by_split(cross_entropy),
      "seconds": _number(seconds),
      "images_per_second": _number(images_per_second),
    }
    _append(self._workdir, line)
    if self._events:
      self._events.write_scalars(line["step"], _scalars(line))
      self._events.flush()
    return line

  def __exit__(self, *_):
    if self._events:
      self._events.close()


def lines(workdir):
  """The evaluations in metrics.jsonl, without a last line that a kill tore.

  Raises:
    ValueError: a line that is not the last is no JSON.
  """
  path = os.path.join(workdir, METRICS)
  found = []
  for number, text in enumerate(_whole_lines(path).splitlines(), start=1):
    try:
      found.append(json.loads(text))
    except ValueError:
      raise ValueError(
        f"{path}, line {number} is not JSON: {text[:40]!r}; restore the file, or begin anew "
        "in another --workdir"
      ) from None
  return found


def cut_after(workdir, step):
  """Removes the evaluations later than `step`, and a torn last line."""
  kept = [line for line in lines(workdir) if line["step"] <= step]
  _replace(workdir, METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def best_single(line, singles):
  """(accuracy, reader) of the best of `singles` in one line: what the best checkpoint has.

  On validation where there is one, else on test; the first of equal readers.
  """
  accuracy = line["accuracy"].get("validation") or line["accuracy"]["test"]
  best = max(singles, key=lambda reader: accuracy[reader])
  return accuracy[best], best


def result(lines, config, *, singles, students, parameters, version, **more):
  """The run in one dict, made from its evaluations alone; accuracies are fractions.

  The best is the highest over all evaluations, the earliest of equals. "best_single" is
  the best single network, chosen on validation where there is one; its accuracy is then
  the test accuracy at that evaluation.

  Args:
    lines: what `lines` reads, in order.
    config: the resolved config.
    singles: names of the readers that are single networks, in the method's order.
    students: how many networks or branches the method trains.
    parameters: how many numbers descent moves.
    version: of this package.
    **more: further entries, e.g. parameters_deployed.
  """
  best_line = max(lines, key=lambda line: best_single(line, singles)[0])
  best_reader = best_single(best_line, singles)[1]
  chosen_on = "validation" if best_line["accuracy"].get("validation") else "test"
  return {
    "method": config["method"]["name"],
    "network": config["network"],
    "dataset": config["data"]["name"],
    "seed": config["seed"],
    "students": students,
    "epochs": config["epochs"],
    "steps": lines[-1]["step"],
    "evaluations": len(lines),
    "parameters": parameters,
    "seconds": lines[-1]["seconds"],
    "readers": {
      reader: {"single": reader in singles, **_career(lines, reader)}
      for reader in lines[-1]["accuracy"]["test"]
    },
    "best_single": {
      "reader": best_reader,
      "accuracy": best_line["accuracy"]["test"][best_reader],
      "epoch": best_line["epoch"],
      "chosen_on": chosen_on,
    },
    **more,
    "config": config,
    "version": version,
  }


def _career(lines, reader):
  def on(split, line):
    return line["accuracy"][split][reader]

  best = max(lines, key=lambda line: on("test", line))  # max keeps the first of equals
  validated = [line for line in lines if line["accuracy"].get("validation")]
  chosen = max(validated, key=lambda line: on("validation", line), default=None)
  return {
    "last": on("test", lines[-1]),
    "best": on("test", best),
    "best_epoch": best["epoch"],
    "at_best_validation": chosen and on("test", chosen),
  }


def write_result(workdir, result):
  """Writes result.json, which says that the run is finished."""
  _replace(workdir, RESULT, _pretty(result))


def read_result(workdir):
  """The result of a finished run, or None."""
  return _read_json(workdir, RESULT)


def _by_split(measured):
  return {
    split: {reader: _number(value) for reader, value in readers.items()}
    for split, readers in measured.items()
  }


def _number(x):
  """A Python number, from NumPy's and JAX's too; None where JSON has no word for it."""
  x = x.item() if hasattr(x, "item") else x
  return x if math.isfinite(x) else None


def _pretty(tree):
  return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def _read_json(workdir, name):
  try:
    with open(os.path.join(workdir, name), encoding="utf-8") as file:
      return json.load(file)
  except FileNotFoundError:
    return None


def _writes():
  """Whether this process of a pod is the one that writes."""
  from okdph_jax.runtime import (
    distributed,  # imports JAX, which reading a logbook does not need
  )

  return distributed.is_leader()


def _replace(workdir, name, text):
  """Writes a file whole or not at all: a kill leaves the old one. One of a pod writes."""
  if not _writes():
    return
  path = os.path.join(workdir, name)
  temporary = f"{path}.{os.getpid()}.tmp"
  with open(temporary, "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _append(workdir, line):
  if not _writes():
    return
  path = os.path.join(workdir, METRICS)
  with open(path, "ab") as file:
    file.truncate(len(_whole_lines(path)))
    file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _whole_lines(path):
  """The file up to its last newline, as bytes: what comes after was torn by a kill."""
  try:
    with open(path, "rb") as file:
      text = file.read()
  except FileNotFoundError:
    return b""
  return text[: text.rfind(b"\n") + 1]


def _scalars(line):
  numbers = {key: line[key] for key in ("epoch", "learning_rate", "images_per_second")}
  numbers |= {f"losses/{name}": loss for name, loss in line["losses"].items()}
  for measure in ("accuracy", "cross_entropy"):
    for split, readers in line[measure].items():
      numbers |= {f"{split}_{measure}/{reader}": x for reader, x in readers.items()}
  return {name: number for name, number in numbers.items() if number is not None}


def _events(workdir):
  """clu's TensorBoard writer, or None and one line; None in a pod where another writes."""
  if not _writes():
    return None
  from okdph_jax.runtime import host

  try:
    with host.silent():
      import tensorflow as tf  # clu imports it
      from clu.metric_writers import SummaryWriter

      host.hide_accelerators(tf)
  except ImportError as error:
    print(f"no TensorBoard events: {error}; pip install clu tensorflow tensorboard")
    return None
  return SummaryWriter(str(workdir))
