"""Finds runs, finished or not, and groups them by experiment."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from okdph_jax import durations
from okdph_jax.experiment.paper import RELEASE, RELEASED_OTHERWISE
from okdph_jax.report import paper
from okdph_jax.run import CONFIG, ERROR, MEASURED_SHAPE, RESULT, Run
from okdph_jax.saved_config import LAST_BITS, NO_EFFECT, SOURCES, completed, flat

# Runs that differ only in these options are the same experiment.
NOT_THE_EXPERIMENT = NO_EFFECT | LAST_BITS | {"seed", "data.seed", "snapshots"}
# Options that are in the title of a group, or begin the label of a row.
IN_THE_TITLES = {"data.name", "data.fraction", "network", "method.name"}
ARRAYS = {"checkpoints", "snapshots", "latest", "best"}  # folders of a run to leave out

PICTURES = (".svg", ".png")

Config = Mapping[str, Any]
Result = dict[str, Any]  # the content of a result.json


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
  """A run in a report: a run directory, or only a result file."""

  name: str  # its path below the given folder
  config: Config
  result: Result | None  # None if it is not finished
  run: Run | None  # None for a result file without a run directory

  @functools.cached_property
  def lines(self) -> list[dict[str, Any]]:
    """Its evaluations, see `Run.lines`."""
    return self.run.lines if self.run else []

  @functools.cached_property
  def training(self) -> list[dict[str, Any]]:
    """Losses of single steps."""
    return self.run.training if self.run else []

  @property
  def seed(self) -> int:
    """The seed that was asked for; generations of it train with seeds of their own."""
    recorded = self.record | (self.result or {})
    return recorded.get("replicate_seed", self.config["seed"])

  @property
  def draw(self) -> int:
    """The seed with which its training images were drawn."""
    return self.config["data"]["seed"]

  @functools.cached_property
  def record(self) -> dict[str, Any]:
    """config.json; {} without a run directory."""
    return self.run and self.run.record or {}

  @property
  def command(self) -> str | None:
    """The command that trained it, if recorded."""
    return self.record.get("command")

  @property
  def fingerprint(self) -> dict[str, dict[str, Any]]:
    """{split: {"images", "digest"}} of its data; {} if earlier versions recorded none."""
    return (self.result or {}).get("fingerprint") or self.record.get("fingerprint", {})

  @property
  def images(self) -> int | None:
    """The number of its training images, if recorded."""
    return self.fingerprint.get("train", {}).get("images")

  @property
  def test_digest(self) -> str | None:
    """The digest of its test set, if recorded."""
    return self.fingerprint.get("test", {}).get("digest")

  @property
  def milestones(self) -> list[float]:
    """The epochs at which its learning rate drops."""
    return milestones(self.config, self.config.get("extended_from_epochs"))


def milestones(config: Config, planned_epochs: int | None) -> list[float]:
  """The epochs at which a run's learning rate drops, except those given in steps."""
  found = []
  for when in config.get("milestones") or ():
    count, unit = durations.parse(when) if isinstance(when, str) else (when, "")
    if unit != "step":
      scale = (planned_epochs or config["epochs"]) / durations.REFERENCE_EPOCHS
      found.append(count if unit else round(count * scale))
  return [epoch for epoch in found if epoch < config["epochs"]]


class Group(NamedTuple):
  """The runs of one table, whose accuracies may be compared."""

  dataset: str
  setting: str  # as `paper.setting` gives it
  network: str

  @property
  def title(self) -> str:
    """A heading: "cifar10, 1 % of the training set, resnet32"."""
    return ", ".join([self.data, self.network])

  @property
  def data(self) -> str:
    """The title without the network."""
    words = self.setting.replace("noisy", "noisy inputs")
    words = words.replace("%", "% of the training set")
    return self.dataset if words == "clean" else f"{self.dataset}, {words}"


Row = tuple[str, list[Trial]]  # an experiment: (its label, its runs)


# Finding.


def find(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Trial], list[str]]:
  """Finds the runs and result files in these files and directories; links are followed.

  Returns:
    ([trial, ...], [warning, ...]): there is a warning for each file that is not a result, and
    for each further run of the same config, seed and test set; both are left out. Of such runs
    the first finished one is kept.
  """
  found, warnings, left, seen = [], [], set(), defaultdict(list)
  for root in map(Path, paths):
    for file in _below(root, warnings) if root.is_dir() else [root]:
      try:
        trial = _trial(file, root, warnings)
        _ = trial.lines, trial.training  # a damaged file is found here
      except (OSError, ValueError) as error:
        warnings.append(f"{file}: left out, {error}")
      else:
        found.append((trial, file))
  for trial, file in sorted(found, key=lambda pair: pair[0].result is None):  # finished first
    alike = seen[variant(trial.config), trial.seed, trial.draw]
    digest = trial.test_digest  # None, not recorded: any test set
    same = next((f for there, f in alike if None in (there, digest) or there == digest), None)
    if same:
      warnings.append(f"{file}: left out, the same config and seed as {same}")
      left.add(trial)
    else:
      alike.append((digest, file))
  return [trial for trial, _ in found if trial not in left], warnings


def analyses(
  paths: Iterable[str | os.PathLike[str]],
) -> list[tuple[str, dict[str, Any], Path]]:
  """(name, content of its JSON file, picture) of each `okdph analysis` below these folders.

  The picture is the smaller of .png and .svg.
  """
  found = {}
  for root in map(Path, paths):
    for folder, files in _walk(root):
      for file in files:
        path = folder / file
        if (pictures := _pictures(path)) and (content := _finding(path)):
          smallest = min(pictures, key=lambda picture: picture.stat().st_size)
          found.setdefault(path.resolve(), (path.stem, content, smallest))
  return list(found.values())


def _finding(file):
  """What `okdph analysis` wrote to a JSON file; None for others, such as `evaluate`'s."""
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except ValueError:
    return None
  return content if isinstance(content, dict) and "analysis" in content else None


def _pictures(file):
  """The pictures beside a JSON file; those of analyses have some."""
  there = (file.with_suffix(suffix) for suffix in PICTURES)
  return [picture for picture in there if picture.exists()] if file.suffix == ".json" else []


def _walk(root):
  """(folder, names of its files) of a tree, each folder once; links are followed."""
  visited = set()
  for folder, folders, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in visited:
      folders.clear()
      continue
    visited.add(real)
    inside = ARRAYS if CONFIG in files or RESULT in files else set()
    folders[:] = sorted(set(folders) - inside)
    yield Path(folder), sorted(files)


def _below(root, warnings):
  """The result, or else the config, of each run; then the JSON files outside of runs.

  Adds a warning for each run that failed before it had a config.
  """
  runs, found, alone = [], [], []
  for here, files in _walk(root):
    if CONFIG in files:
      runs.append(here)
    if ERROR in files and CONFIG not in files:
      warnings.append(f"{here}: failed before training, {Run(here).failure}")
    if CONFIG in files or RESULT in files:
      found.append(here / (RESULT if RESULT in files else CONFIG))
    if not any(here.is_relative_to(run) for run in runs):
      files = [here / file for file in files if file.endswith(".json") and file != RESULT]
      alone += [file for file in files if not _pictures(file)]
  return found + alone


def _trial(file, root, warnings):
  name = str(file.relative_to(root)) if file != root else file.name
  if file.name not in (CONFIG, RESULT):
    result = read(file)
    return Trial(name.removesuffix(".json"), _config(result["config"], result), result, None)
  folder = os.path.dirname(name) or file.absolute().parent.name
  run = Run(file.parent) if (file.parent / CONFIG).exists() else None
  if file.name == RESULT:
    result = read(file)
    try:
      _ = run and run.record
    except ValueError as error:
      warnings.append(f"{file.parent}: its result alone is shown, {error}")
      run = None
    return Trial(folder, _config(result["config"], result), result, run)
  assert run
  try:
    config = run.require_config()
    _ = group(config), config["seed"], config["epochs"]
  except (KeyError, TypeError) as error:
    raise ValueError(f"not a run of okdph_jax ({error})") from None
  return Trial(folder, _config(config, run.record), None, run)


def _config(config, about):
  """A config, with the epochs planned before its run was extended: it is another experiment."""
  return completed(config) | {"extended_from_epochs": about.get("extended_from_epochs")}


def read(file: str | os.PathLike[str]) -> Result:
  """Reads a result.json, see `training.logbook.result`.

  Raises:
    ValueError: it is not a result.
  """
  try:
    result = json.loads(Path(file).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"not JSON ({error})") from None
  try:
    _ = group(result["config"]), variant(result["config"])
    numbers = [result[key] for key in ("seed", "evaluations", "parameters", "seconds")]
    numbers += [result["students"], result["epochs"], result["best_single"]["accuracy"]]
    for reader in result["readers"].values():
      _ = reader["single"], reader["at_best_validation"]
      numbers += [reader["last"], reader["best"]]
    if not all(isinstance(x, (int, float)) for x in numbers):
      raise TypeError("a number is missing")
    if not any(reader["single"] for reader in result["readers"].values()):
      raise TypeError("no single network among the readers")
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"not a result of okdph_jax ({error})") from None
  return result


# Grouping and naming.


def group(config: Config) -> Group:
  """The dataset, the setting and the network of a run."""
  return Group(config["data"]["name"], paper.setting(config), config["network"])


def variant(config: Config) -> tuple[tuple[str, str], ...]:
  """The options that identify an experiment: ((name, value as JSON), ...)."""
  return tuple(
    (key, json.dumps(value))
    for key, value in sorted(flat(completed(config)).items())
    if key not in NOT_THE_EXPERIMENT
  )


def _experiments(trials):
  """The `variant` of each trial, with one name for teachers of which each seed has its own."""
  seeds = defaultdict(set)
  for trial in trials:
    for name in SOURCES:
      seeds[trial.config.get(name)].add((trial.seed, trial.draw))
  for trial in trials:
    config = dict(trial.config)
    own = rf"-seed(?:{trial.seed}|{trial.draw})(?=$|[:@/])"
    for name in SOURCES:
      if config.get(name) and len(seeds[config[name]]) == 1:
        config[name] = re.sub(own, "-seed*", config[name])
    yield variant(config)


def grouped(
  trials: Iterable[Trial], *, hidden: Set[str] = frozenset()
) -> Iterator[tuple[Group, list[Row]]]:
  """Yields (Group, [(label, runs), ...]), all in alphabetical order.

  Datasets of the same options whose test sets differ, such as two folders, are groups of their
  own.
  """
  trials = list(trials)
  groups, digests = defaultdict(lambda: defaultdict(list)), defaultdict(set)
  for trial in trials:
    digests[_asked(trial.config["data"])].add(trial.test_digest)
  for trial, experiment in zip(trials, _experiments(trials), strict=True):
    there, digest = group(trial.config), trial.test_digest
    if digest and len(digests[_asked(trial.config["data"])] - {None}) > 1:
      there = there._replace(dataset=f"{there.dataset} {digest[:6]}")
    groups[there][experiment].append(trial)
  for name, variants in sorted(groups.items()):
    rows = zip(labels(list(variants), hidden), variants.values(), strict=True)
    yield name, sorted(rows, key=lambda row: row[0])


def _asked(data):
  """The options of a dataset, without its place, its draw, and what was measured of it."""
  return json.dumps([data[x] for x in sorted(data.keys() - {"dir", "seed", *MEASURED_SHAPE})])


def labels(
  variants: Iterable[tuple[tuple[str, str], ...]], hidden: Set[str] = frozenset()
) -> list[str]:
  """The label of each variant: its method, and the options in which it differs from others.

  A method's own options, its views and its teacher are compared within the method, other
  options within the group. The options in `hidden` are left out if the label is unique without
  them.
  """
  configs = [dict(variant) for variant in variants]
  full, short = (
    [", ".join([method(config), *_settings(config, configs, names)]) for config in configs]
    for names in (frozenset[str](), hidden)
  )
  return [
    whole if short.count(part) > 1 else part for whole, part in zip(full, short, strict=True)
  ]


def method(config: Mapping[str, str]) -> str:
  """The method and its wrappers, "base + sam" or "okdph (release)", of a variant as a dict."""
  name = json.loads(config["method.name"])
  wrappers = [wrapper["name"] for wrapper in json.loads(config.get("wrappers", "[]"))]
  return " + ".join([name + " (release)" * _as_released(name, config), *wrappers])


def _as_released(name, config):
  """Whether a method has the options of the release, if these are not our defaults."""
  asked = {f"method.{option}": value for option, value in RELEASE.get(name, {}).items()}
  asked.pop("method.students", None)  # the label has the number of networks
  return name in RELEASED_OTHERWISE and all(
    key in config and json.loads(config[key]) == value for key, value in asked.items()
  )


def _settings(config, configs, hidden):
  kin = [other for other in configs if method(other) == method(config)]
  for key in sorted(config.keys() - IN_THE_TITLES - hidden):
    others = kin if key.startswith(("method.", "wrappers", "views", "teacher")) else configs
    # Runs of earlier versions may lack an option, which is not a difference.
    if any(other.get(key, config[key]) != config[key] for other in others):
      value = json.loads(config[key])
      shown = " / ".join(value) if key == "views" else value
      yield f"{key.removeprefix('method.')}={shown}"


def replicates(trials: Iterable[Trial]) -> tuple[str, Callable[[Trial], int]]:
  """How runs of one experiment are paired with those of another: (option, its value of a run).

  By the draw of the images if there are several draws, else by the seed.
  """
  draws = {trial.draw for trial in trials}
  return ("data.seed", lambda t: t.draw) if len(draws) > 1 else ("seed", lambda t: t.seed)


# What is missing.


def missing(trials: Iterable[Trial]) -> list[str]:
  """What is missing in the grid of runs, a line for each gap.

  A gap is a seed, or draw of the images, that other rows of the group have, or a method that
  another network or dataset has. Runs that are not finished are not gaps.
  """
  found, lines = list(grouped(trials)), []
  everywhere = {_base(label) for _, rows in found for label, _ in rows}
  for name, rows in found:
    word, key = replicates(trial for _, trials in rows for trial in trials)
    there = {key(trial) for _, trials in rows for trial in trials}
    for label, trials in rows:
      if absent := sorted(there - {key(trial) for trial in trials}):
        plural = "s" * (len(absent) > 1)
        lines.append(f"{name.title}: {label}: {word}{plural} {', '.join(map(str, absent))}")
    if absent := sorted(everywhere - {_base(label) for label, _ in rows}):
      lines.append(f"{name.title}: no run of {', '.join(absent)}")
  return lines


def _base(label):
  return label.partition(", ")[0]
