"""Sweep files: the runs that they describe, all checked before any of them starts.

A sweep file is a Python file with `get_sweep()`, which returns {name: options}. The options are
those of `okdph train`: "config", and any config.OPTION by its name.

    SEEDS = 3  # runs of each entry, with the seeds 42, 43, 44; --seeds=N takes precedence

    def get_sweep():
      return {
        "dml": {"config": "digits:dml,resnet8"},
        "okdph-beta0.5": {"config": "digits:okdph,resnet8", "method.beta": 0.5},
      }

`teacher` may name an earlier entry, "base" or "base:ensemble", which is trained first. An entry
with `"seeds": 1` has one run, which teaches all seeds. `REPLICATE` in the file names the
options that are set to a run's seed: ("seed",) by default, or ("seed", "data.seed") to also
draw other training images in each run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from okdph_jax.errors import nearest, one_line
from okdph_jax.experiment.build import check_without_data
from okdph_jax.experiment.config import (
  Overrides,
  check_type,
  find,
  flat,
  load_config,
  load_file,
)
from okdph_jax.experiment.fit import generations
from okdph_jax.run import RESULT, Run

FOLDER = "configs/sweeps"
SEED = 42  # of the first run of an entry


class Cell(NamedTuple):
  """One run of a sweep."""

  name: str  # "resnet32-dml-seed42", the name of its folder
  entry: str  # "resnet32-dml", the same for all seeds
  config: ConfigDict  # checked
  options: tuple[str, ...]  # the arguments of `okdph train`
  of_seeds: tuple[str, ...]  # likewise, with {seed} for the seed; () if it cannot be stacked
  run: Run
  teacher: Run | None  # the run of another cell, which must finish first
  facets: dict[str, set[str]]  # what --only selects by: {"method": {"dml"}, ...}

  @property
  def runs(self) -> list[Run]:
    """The run, or if it has several generations the run of each."""
    return [Run(folder) for _, folder in generations(self.config, self.run.path)]

  @property
  def current(self) -> Run:
    """The first of `runs` without a result, or the last one."""
    return next((run for run in self.runs if not (run.path / RESULT).exists()), self.runs[-1])

  @property
  def holder(self) -> str | None:
    """The process that writes to one of `runs` now; None if there is none."""
    return next((holder for run in self.runs if (holder := run.holder)), None)


def read(
  spec: str, root: Path, seeds: int | None = None, overrides: Overrides = ()
) -> list[Cell]:
  """The cells of a sweep file, or of one in configs/sweeps by name, sorted by seed.

  root: the directory of all runs. seeds: their number per entry, by default that of the file.
  overrides: (name, text) of options to change in all runs.

  Raises:
    ValueError: in one line, for a file that is not a sweep, or an invalid config.
  """
  name, module = load_file(spec, FOLDER, "get_sweep")
  seeds = seeds or getattr(module, "SEEDS", 1)
  replicate = getattr(module, "REPLICATE", ("seed",))
  try:
    entries = module.get_sweep()
  except Exception as error:  # a user's file may raise anything
    raise ValueError(f"the sweep {name}: {type(error).__name__}: {one_line(error)}") from error
  named = isinstance(entries, Mapping) and all(isinstance(x, dict) for x in entries.values())
  if not named or not entries:
    raise ValueError(f"the sweep {name}: get_sweep() must return {{name: options}}")
  cells = []
  for entry, options in entries.items():
    try:
      cells += _cells(entry, dict(options), entries, cells, root, seeds, replicate, overrides)
    except ValueError as error:
      raise ValueError(f"the sweep {name}, {entry}: {error}") from None
  return sorted(cells, key=lambda cell: cell.config.seed)  # first all entries with one seed


def _cells(entry, options, entries, earlier, root, seeds, replicate, changes):
  if not isinstance(entry, str) or not re.fullmatch(r"[\w.+=%,-]+", entry):
    raise ValueError("names of entries may contain letters, digits and . + = % , - _")
  spec, asked = options.pop("config", None), options.get("teacher", "")
  own_seeds = options.pop("seeds", seeds)
  if spec is None:
    raise ValueError("its options lack 'config', e.g. 'cifar10:okdph,resnet32'")
  check_type("config", spec, str)
  check_type("teacher", asked, str)
  check_type("seeds", own_seeds, int)
  teacher = re.split("[:@]", asked)[0]  # without its reader and checkpoint
  for name in set(replicate) & (options.keys() | dict(changes)):
    raise ValueError(
      f"seeds are set by SEEDS in the file or by --seeds=N; leave the option {name} out"
    )
  overrides = {k: v if isinstance(v, str) else repr(v) for k, v in options.items()}
  overrides = list((overrides | dict(changes)).items())
  if teacher in list(entries)[list(entries).index(entry) :]:
    raise ValueError(f"its teacher, {teacher}, must come before it")
  if teacher in entries and "teacher" in dict(changes):
    raise ValueError(f"the file names its teacher, {teacher}; leave the option teacher out")
  config = load_config(spec, overrides)
  check_without_data(config)
  facets = _facets(entry, spec, config)
  for seed in range(SEED, SEED + min(own_seeds, seeds)):
    numbers = dict.fromkeys(replicate, str(seed))
    changed = dict(overrides) | numbers
    taught_by = None
    if teacher in entries:
      one = entries[teacher].get("seeds", seeds) == 1
      taught_by = Run(root / f"{teacher}-seed{SEED if one else seed}")
      cell = next((cell for cell in earlier if cell.run.path == taught_by.path), None)
      if not cell or cell.config.generations > 1:
        why = "trains several generations" if cell else f"has no seed {seed}"
        raise ValueError(f"its teacher, {teacher}, {why}")
      changed["teacher"] = str(taught_by.path) + asked.removeprefix(teacher)
    name = f"{entry}-seed{seed}"
    of_seeds = changed | dict.fromkeys(replicate, "{seed}")
    alone = (
      of_seeds.pop("seed", None) is None or max(config.generations, config.student_groups) > 1
    )
    taught = {"teacher": changed["teacher"]} if "teacher" in changed else {}
    own = load_config(config, list((numbers | taught).items()))
    yield Cell(
      name,
      entry,
      own,
      _arguments(spec, changed, root / name),
      () if alone else _arguments(spec, of_seeds, f"{root / entry}-seed{{seed}}"),
      Run(root / name),
      taught_by,
      facets | {name: {number} for name, number in numbers.items()} | {"run": {name}},
    )


def _arguments(spec, options, workdir):
  named = (f"--config.{name}={value}" for name, value in options.items())
  return f"--config={spec}", *named, f"--workdir={workdir}"


def _facets(entry, spec, config):
  """What --only can select an entry by: options, and short names for the usual ones."""
  facets = {name: {str(value)} for name, value in flat(config).items()}
  file = find(spec)
  for part, fallback in file.template.items():
    fallback = fallback[0] if isinstance(fallback, tuple) else fallback
    facets.setdefault(part, set()).add(file.parts().get(part, str(fallback)))
  wrappers = {wrapper["name"] for wrapper in config.wrappers}
  facets["method"] = {config.method.name} | wrappers | facets.get("method", set())
  facets["students"] = {str(config.method.get("students", 1))}
  return facets | {"dataset": {config.data.name}, "entry": {entry}}


def stacked(cells: Iterable[Cell], most: int) -> list[list[Cell]]:
  """The cells in groups of at most `most`, each of which can be trained as one program.

  The cells of a group differ only in their seeds, and can start at the same step: they have a
  checkpoint of it, or none has any checkpoint.
  """
  groups: list[tuple[list[Cell], set[int]]] = []
  for cell in cells:
    steps = cell.run.checkpoint_steps or {0}
    for group, common in groups:
      fits = cell.of_seeds and cell.of_seeds == group[0].of_seeds and common & steps
      if len(group) < most and fits:
        group.append(cell)
        common &= steps
        break
    else:
      groups.append(([cell], steps))
  return [group for group, _ in groups]


def arguments(cells: Sequence[Cell]) -> tuple[str, ...]:
  """The arguments of `okdph train` for one cell, or for several as one program."""
  if len(cells) == 1:
    return cells[0].options
  return *cells[0].of_seeds, f"--seeds={','.join(str(cell.config.seed) for cell in cells)}"


def select(cells: Iterable[Cell], only: str) -> list[Cell]:
  """The cells that match all conditions of `only`, "method=okdph,network=resnet32".

  A repeated name allows several values; * and ? match any letters. Names are options, parts of
  the config's argument, "entry", "run" and "seed".

  Raises:
    ValueError: in one line, if there is no such cell.
  """
  cells = list(cells)
  wanted: dict[str, list[str]] = {}
  for word in only.split(","):
    name, found, value = word.partition("=")
    if not found:
      raise ValueError(f"--only={only}: {word!r} is not NAME=VALUE")
    wanted.setdefault(name, []).append(value)
  for name, values in wanted.items():
    known = {n: there for cell in cells for n, there in cell.facets.items()}
    if name not in known:
      raise ValueError(f"--only={only}: no run has a {name!r}{nearest(name, known)}")
    left = [
      cell
      for cell in cells
      if any(fnmatchcase(there, v) for there in cell.facets.get(name, ()) for v in values)
    ]
    if not left:
      there = sorted(set().union(*(cell.facets.get(name, set()) for cell in cells)))
      raise ValueError(
        f"--only={only}: no run has {name}={values[-1]}; there are {', '.join(there)}"
      )
    cells = left
  return cells
