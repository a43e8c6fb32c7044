"""Results of many runs as Markdown: mean and spread over seeds, and the paper's numbers."""

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from okdph_jax.report import paper
from okdph_jax.run import CONFIG, MAY_DIFFER, RESULT, completed, flat

# Runs that differ in these alone are the same experiment.
NOT_THE_EXPERIMENT = MAY_DIFFER | {"seed", "devices", "snapshots"}
# These name a group of rows, or the row itself.
IN_THE_TITLES = {"data.name", "data.fraction", "network", "method.name"}

NOTES = """\
Test accuracy in %: mean ± standard deviation (ddof = 1) over n seeds; a single run has no
spread. *last*: after the last epoch. *best on test*: the highest of all evaluations on the test
set. It is biased upwards, the more so the more evaluations and networks it is taken over, and
so is the best of a run's single networks.

*as the paper counts*: the highest of all evaluations and of the readers that the authors'
release reports. For ONE, OKDDip and FFL these include an ensemble or a fused head, which is
more than one network and is named where it is the highest; for PCL they are the averaged
branches alone. *paper*: the number in arXiv:2303.14666, in brackets the views it was measured
with where the run has others. It is the mean of five runs of about 300 evaluations each, and is
given only for runs with the hyper-parameters that it was measured with."""


HEAD_NOTES = """\
Test accuracy in % of the best single network after the last epoch, for n > 1 the mean ±
standard deviation over n seeds. *paper*: the number in arXiv:2303.14666 for the same
hyper-parameters, the highest of about 300 evaluations on the test set, in brackets the views it
was measured with where the run has others."""


Result = dict[str, Any]  # what is in a result.json


class Group(NamedTuple):
  """What stands in one table: runs whose accuracies may be compared."""

  dataset: str
  setting: str  # as `paper.setting` gives it
  network: str


def find(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Result], list[str]]:
  """The results under files and directories, and a warning for each file that is no result.

  Returns:
    ([result, ...], [warning, ...]); a second run of the same config and seed is left out.
  """
  files = []
  for path in map(Path, paths):
    files += _below(path) if path.is_dir() else [path]
  results, warnings, seen = [], [], {}
  for file in files:
    try:
      result = read(file)
    except (OSError, ValueError) as error:
      warnings.append(f"{file}: left out, {error}")
      continue
    same = seen.setdefault((variant(result), result["seed"]), file)
    if same is file:
      results.append(result)
    else:
      warnings.append(f"{file}: left out, the same config and seed as {same}")
  return results, warnings


def _below(folder):
  """The JSON files in a folder; of a run its result alone, not its config or evaluations."""
  runs = {file.parent for file in folder.rglob(CONFIG)}
  for file in sorted(folder.rglob("*.json")):
    if file.name == RESULT or not runs & set(file.parents):
      yield file


def read(file: str | os.PathLike[str]) -> Result:
  """One result.json as `training.logbook.result` made it.

  Raises:
    ValueError: it is something else.
  """
  try:
    result = json.loads(Path(file).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"not JSON ({error})") from None
  try:
    _ = group(result), variant(result)
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


def group(result: Result) -> Group:
  """The dataset, the setting and the network of one result."""
  return Group(result["dataset"], paper.setting(result["config"]), result["network"])


def variant(result: Result) -> tuple[tuple[str, str], ...]:
  """What tells one experiment from another: ((key, value as JSON), ...)."""
  config = flat(completed(result["config"]))
  return tuple(
    (key, json.dumps(value))
    for key, value in sorted(config.items())
    if key not in NOT_THE_EXPERIMENT
  )


def render(results: Iterable[Result], *, head: bool = False) -> str:
  """Markdown, a section for each group: the best single networks and then every reader.

  `head` gives instead one short table per group, the most accurate method first.
  """
  parts = [HEAD_NOTES if head else NOTES]
  for name, rows in grouped(results, hidden={"views"} if head else set()):
    parts.append(f"### {title(name)}")
    if head:
      parts.append(_head(rows))
      continue
    parts += [_summary(rows), "Single networks:", _readers(rows, single=True)]
    if ensembles := _readers(rows, single=False):
      parts += ["Ensembles and fused heads, each of them more than one network:", ensembles]
  return "\n\n".join(parts) + "\n"


def grouped(
  results: Iterable[Result], *, hidden: Set[str] = frozenset()
) -> Iterator[tuple[Group, list[tuple[str, list[Result]]]]]:
  """(Group, [(label, its runs), ...]) of each group, all in alphabetical order."""
  groups = defaultdict(lambda: defaultdict(list))
  for result in results:
    groups[group(result)][variant(result)].append(result)
  for name, variants in sorted(groups.items()):
    rows = zip(labels(list(variants), hidden), variants.values(), strict=True)
    yield name, sorted(rows, key=lambda row: row[0])


def title(name: Group) -> str:
  """A heading: "cifar10, 1 % of the training set, resnet32"."""
  words = name.setting.replace("noisy", "noisy inputs").replace("%", "% of the training set")
  parts = [name.dataset, words, name.network]
  return ", ".join(part for part in parts if part != "clean")


def labels(
  variants: Iterable[tuple[tuple[str, str], ...]], hidden: Set[str] = frozenset()
) -> list[str]:
  """Each variant's method, and the settings in which it differs from others of the group.

  A method's own options are compared within the method, all else within the group; the
  settings `hidden` are left out.
  """
  configs = [dict(variant) for variant in variants]
  return [
    ", ".join([_method(config), *_settings(config, configs, hidden)]) for config in configs
  ]


def _method(config):
  wrappers = [wrapper["name"] for wrapper in json.loads(config.get("wrappers", "[]"))]
  return " + ".join([json.loads(config["method.name"]), *wrappers])


def _settings(config, configs, hidden):
  kin = [other for other in configs if _method(other) == _method(config)]
  for key in sorted(config.keys() - IN_THE_TITLES - hidden):
    others = kin if key.startswith(("method.", "wrappers", "views")) else configs
    # Runs of an earlier version may lack an option; that is no difference.
    if any(other.get(key, config[key]) != config[key] for other in others):
      value = json.loads(config[key])
      shown = " / ".join(value) if key == "views" else value
      yield f"{key.removeprefix('method.')}={shown}".replace("|", "\\|")


def _head(rows):
  """Method, views, accuracy and the paper's: what decides which one to choose."""
  table = []
  rows = sorted(rows, key=lambda row: -statistics.mean(last(row[1], single=True)))
  for label, runs in rows:
    n = f" (n = {len(runs)})" if len(runs) > 1 else ""
    table.append(
      {
        "method": label,
        "views": _views(runs[0]),
        "networks or branches": runs[0]["students"],
        "accuracy": spread(last(runs, single=True)) + n,
        "paper": _paper(runs[0]),
      }
    )
  return _markdown(table)


def _summary(rows):
  table = []
  for label, runs in rows:
    validated = [run["best_single"]["chosen_on"] == "validation" for run in runs]
    table.append(
      {
        "method": label,
        "views": _views(runs[0]),
        "students": runs[0]["students"],
        "n": len(runs),
        "best single network: last": spread(last(runs, single=True)),
        "best single network: best on test": spread([_best_single(run) for run in runs]),
        "best single network: chosen on validation": spread(
          [run["best_single"]["accuracy"] for run in runs] if all(validated) else []
        ),
        "as the paper counts: best on test": _as_the_paper_counts(runs),
        "paper": _paper(runs[0]),
        "epochs": _same(run["epochs"] for run in runs),
        "evaluations": _same(run["evaluations"] for run in runs),
        "minutes": f"{statistics.mean(run['seconds'] for run in runs) / 60:.3g}",
        "parameters": _same(f"{run['parameters']:,}" for run in runs),
      }
    )
  return _markdown(table)


def _views(run):
  """The distinct ones: what a network may see decides as much as its method."""
  return ", ".join(dict.fromkeys(run["config"]["views"])).replace("|", "\\|")


def last(runs: Iterable[Result], *, single: bool) -> list[float]:
  """Of each run the highest accuracy after the last epoch: [fraction, ...].

  Among its single networks, or else among its ensembles and fused heads; runs without are
  left out.
  """
  return [
    max(there)
    for run in runs
    if (there := [r["last"] for r in run["readers"].values() if r["single"] == single])
  ]


def _best_single(run):
  return max(reader["best"] for reader in run["readers"].values() if reader["single"])


def _as_the_paper_counts(runs):
  """The spread of the best of the readers that count, and which of them are no single one."""
  best = []
  for run in runs:
    counted = [name for name in run["readers"] if paper.counts(run["method"], name)]
    best.append(max(counted, key=lambda name: run["readers"][name]["best"], default=None))
  if None in best:
    return ""
  readers = [run["readers"][name] for run, name in zip(runs, best, strict=True)]
  several = {n for n, reader in zip(best, readers, strict=True) if not reader["single"]}
  named = f" ({', '.join(sorted(several))})" if several else ""
  return spread([reader["best"] for reader in readers]) + named


def _readers(rows, single):
  table = []
  for label, runs in rows:
    for name, reader in runs[0]["readers"].items():
      if reader["single"] != single:
        continue
      seeds = [run["readers"][name] for run in runs if name in run["readers"]]
      chosen = [seed["at_best_validation"] for seed in seeds]
      table.append(
        {
          "method": label,
          "reader": name,
          "n": len(seeds),
          "last": spread([seed["last"] for seed in seeds]),
          "best": spread([seed["best"] for seed in seeds]),
          "chosen on validation": spread([] if None in chosen else chosen),
          "evaluations": _same(run["evaluations"] for run in runs),
        }
      )
  return _markdown(table)


def spread(fractions: Sequence[float]) -> str:
  """Fractions as "mean ± standard deviation" in %, ddof = 1; "" for none."""
  if not fractions:
    return ""
  percent = [100 * fraction for fraction in fractions]
  mean = f"{statistics.mean(percent):.2f}"
  return mean if len(percent) == 1 else f"{mean} ± {statistics.stdev(percent):.2f}"


def _paper(run):
  cell = paper.cell(run["config"])
  if cell is None:
    return ""
  views = {view.replace("|noise", "") for view in run["config"]["views"]}
  other = f" ({', '.join(cell.views)})" if views != set(cell.views) else ""
  return f"{cell}{other}"


def _same(values):
  return " / ".join(dict.fromkeys(map(str, values)))


def _markdown(table):
  """A Markdown table; columns that are empty in every row are left out."""
  columns = [column for column in (table[0] if table else ()) if any(r[column] for r in table)]
  rows = [[row[column] for column in columns] for row in table]
  if not rows:
    return ""
  align = ["left" if column in ("method", "views", "reader") else "right" for column in columns]
  return tabulate(rows, columns, "pipe", colalign=align, disable_numparse=True)
