"""Sweep files: which runs they ask for, all of them checked before any starts.

A sweep file is Python with `get_sweep()`, which returns {name: options}, the options being
those of `okdph train`: "config", and any config.OPTION by its name.

    SEEDS = 3  # seeds of each, from 42 on, unless --seeds=N says otherwise

    def get_sweep():
      return {
        "dml": {"config": "digits:dml,resnet8"},
        "okdph-beta0.5": {"config": "digits:okdph,resnet8", "method.beta": 0.5},
      }

`teacher` may be the name of an entry that stands before, "base" or "base:ensemble"; that one
runs first. An entry whose `seeds` is 1 has one run, which teaches all seeds of others.
`REPLICATE` of the file names the options that a run's seed is given to: ("seed",), or
("seed", "data.seed") where each run draws images of its own too.
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
from okdph_jax.experiment.config import Overrides, find, flat, load_config, load_file
from okdph_jax.run import Run

FOLDER = "configs/sweeps"
SEED = 42  # the first


class Cell(NamedTuple):
  """One run of a sweep."""

  name: str  # "resnet32-dml-seed42", of its folder
  entry: str  # "resnet32-dml", which it shares with its other seeds
  config: ConfigDict  # checked
  options: tuple[str, ...]  # the arguments of `okdph train`
  of_seeds: tuple[str, ...]  # likewise, with {seed} for the seed; () where it runs alone
  run: Run
  teacher: Run | None  # that of another cell, which has to be finished first
  facets: dict[str, set[str]]  # what --only selects by: {"method": {"dml"}, ...}


def read(
  spec: str, root: Path, seeds: int | None = None, overrides: Overrides = ()
) -> list[Cell]:
  """The cells of a sweep file, or of one of ours by its name: seed by seed in its order.

  root: the folder of all its runs. seeds: how many of each; by default what the file says.
  overrides: options that are changed in all of them, (name, text).

  Raises:
    ValueError: in one line, for a cell whose config is not one, or for a file that is no sweep.
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
      cells += _cells(entry, dict(options), entries, root, seeds, replicate, overrides)
    except ValueError as error:
      raise ValueError(f"the sweep {name}, {entry}: {error}") from None
  return sorted(cells, key=lambda cell: cell.config.seed)  # first a whole table of one seed


def _cells(entry, options, entries, root, seeds, replicate, changes):
  if not re.fullmatch(r"[\w.+=%,-]+", entry):
    raise ValueError("a name has letters, digits and . + = % , - _, because it names folders")
  spec, asked = options.pop("config", None), options.get("teacher", "")
  teacher = re.split("[:@]", asked)[0]  # without its reader and checkpoint
  own_seeds = options.pop("seeds", seeds)
  if spec is None:
    raise ValueError("its options lack 'config', e.g. 'cifar10:okdph,resnet32'")
  for name in set(replicate) & (options.keys() | dict(changes)):
    raise ValueError(
      f"the seeds are SEEDS of the file, or --seeds=N; leave the option {name} out"
    )
  overrides = {k: v if isinstance(v, str) else repr(v) for k, v in options.items()}
  overrides = list((overrides | dict(changes)).items())
  if teacher in list(entries)[list(entries).index(entry) :]:
    raise ValueError(f"its teacher, {teacher}, has to stand before it")
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
      changed["teacher"] = str(taught_by.path) + asked.removeprefix(teacher)
    name = f"{entry}-seed{seed}"
    of_seeds = changed | dict.fromkeys(replicate, "{seed}")
    alone = (
      of_seeds.pop("seed", None) is None or max(config.generations, config.student_groups) > 1
    )
    own = load_config(config, [*numbers.items(), ("teacher", changed.get("teacher", ""))])
    yield Cell(
      name,
      entry,
      own,
      _arguments(spec, changed, root / name),
      () if alone else _arguments(spec, of_seeds, f"{root / entry}-seed{{seed}}"),
      Run(root / name),
      taught_by,
      facets | {"seed": {str(seed)}, "run": {name}},
    )


def _arguments(spec, options, workdir):
  named = (f"--config.{name}={value}" for name, value in options.items())
  return f"--config={spec}", *named, f"--workdir={workdir}"


def _facets(entry, spec, config):
  """What an entry can be selected by: the options, and short names for the usual ones."""
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
  """The cells in groups of at most `most`, each of which one program can train.

  They differ in their seeds alone, and are at one step: they have a checkpoint in common, or
  none has any.
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
  """Those of `okdph train` for one cell, or for several as one program."""
  if len(cells) == 1:
    return cells[0].options
  return *cells[0].of_seeds, f"--seeds={','.join(str(cell.config.seed) for cell in cells)}"


def select(cells: Iterable[Cell], only: str) -> list[Cell]:
  """The cells that `only` names, "method=okdph,network=resnet32": all of these hold.

  The same name twice means either; * and ? stand for any letters. Names are options, parts of
  the config's argument, "entry", "run" and "seed".

  Raises:
    ValueError: in one line, where nothing is selected.
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
      raise ValueError(f"--only={only}: no cell has a {name!r}{nearest(name, known)}")
    left = [
      cell
      for cell in cells
      if any(fnmatchcase(there, v) for there in cell.facets.get(name, ()) for v in values)
    ]
    if not left:
      there = sorted(set().union(*(cell.facets.get(name, set()) for cell in cells)))
      raise ValueError(
        f"--only={only}: no cell is left with {name}={values[-1]}, there are {', '.join(there)}"
      )
    cells = left
  return cells
