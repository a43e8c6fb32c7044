"""Results of many runs as Markdown: mean and spread over seeds, the paper beside them."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from okdph_jax.report import paper
from okdph_jax.training import logbook

# Runs that differ in these alone are the same experiment.
NOT_THE_EXPERIMENT = logbook.MAY_DIFFER | {"seed", "devices", "snapshots"}
# These name a group of rows, or the row itself.
IN_THE_TITLES = {"data.name", "data.fraction", "network", "method.name"}

NOTES = """\
Test accuracy in %: mean ± standard deviation (ddof = 1) over n seeds; a single run has no
spread. *last*: after the last epoch. *best*: the highest of all evaluations on the test set,
which is biased upwards, the more so the more evaluations and readers there are; the same holds
for taking the highest of a run's single networks. *paper*: arXiv:2303.14666, 300 epochs, the
highest of about 300 evaluations and of all readers, ensembles included, its baselines on its
first view alone; its neighbour *any reader: best* is what compares with it."""


class Group(NamedTuple):
  """What stands in one table: runs whose accuracies may be compared."""

  dataset: str
  setting: str  # "clean", "noisy", or the share of the training set: "10 %"
  network: str


def find(paths):
  """The results under files and directories, and one line for each file that is none.

  Returns:
    ([result, ...], [warning, ...]); a second run of the same config and seed is left out.
  """
  files = []
  for path in map(Path, paths):
    files += sorted(path.rglob("*.json")) if path.is_dir() else [path]
  results, warnings, seen = [], [], {}
  for file in files:
    if file.name == logbook.CONFIG:
      continue
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


def read(file):
  """One result.json as `logbook.result` made it.

  Raises:
    ValueError: it is something else.
  """
  try:
    result = json.loads(Path(file).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"not JSON ({error})") from None
  try:
    group(result), variant(result)
    numbers = [result[key] for key in ("seed", "evaluations", "parameters", "seconds")]
    numbers += [result["students"], result["epochs"], result["best_single"]["accuracy"]]
    for reader in result["readers"].values():
      reader["single"], reader["at_best_validation"]
      numbers += [reader["last"], reader["best"]]
    if not all(isinstance(x, (int, float)) for x in numbers):
      raise TypeError("a number is missing")
    if not any(reader["single"] for reader in result["readers"].values()):
      raise TypeError("no single network among the readers")
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"not a result of okdph_jax ({error})") from None
  return result


def group(result):
  """The dataset, the setting and the network of one result."""
  config = logbook.flat(result["config"])
  fraction = config.get("data.fraction", 1.0)
  setting = "noisy" if "noise" in json.dumps(config["views"]) else "clean"
  share = setting if fraction == 1 else f"{100 * fraction:g} %"
  return Group(result["dataset"], share, result["network"])


def variant(result):
  """What tells one experiment from another: ((key, value as JSON), ...)."""
  config = logbook.flat(result["config"])
  return tuple(
    (key, json.dumps(value))
    for key, value in sorted(config.items())
    if key not in NOT_THE_EXPERIMENT
  )


def render(results, *, head=False):
  """Markdown: for each group the best single networks and, unless `head`, every reader."""
  groups = defaultdict(lambda: defaultdict(list))
  for result in results:
    groups[group(result)][variant(result)].append(result)
  parts = [NOTES]
  for name, variants in sorted(groups.items()):
    rows = list(zip(labels(list(variants)), variants.values(), strict=True))
    rows.sort(key=lambda row: row[0])
    parts += [f"### {title(name)}", _summary(name, rows)]
    if not head:
      parts += ["Single networks:", _readers(rows, single=True)]
      ensembles = _readers(rows, single=False)
      parts += ["Ensembles:", ensembles] if ensembles else []
  return "\n\n".join(parts) + "\n"


def title(name):
  """A heading: "cifar10, 1 % of the training set, resnet32"."""
  words = {"clean": [], "noisy": ["noisy inputs"]}
  setting = words.get(name.setting, [f"{name.setting} of the training set"])
  return ", ".join([name.dataset, *setting, name.network])


def labels(variants):
  """Each variant's method, and the settings in which it differs from others of the group.

  A method's own options are compared within the method, all else within the group.
  """
  configs = [dict(variant) for variant in variants]
  return [", ".join([_method(config), *_settings(config, configs)]) for config in configs]


def _method(config):
  wrappers = [wrapper["name"] for wrapper in json.loads(config.get("wrappers", "[]"))]
  return " + ".join([json.loads(config["method.name"]), *wrappers])


def _settings(config, configs):
  kin = [other for other in configs if _method(other) == _method(config)]
  for key in sorted(config.keys() - IN_THE_TITLES):
    others = kin if key.startswith(("method.", "wrappers", "views")) else configs
    # An option that a run of an earlier version did not have tells nothing apart.
    if any(other.get(key, config[key]) != config[key] for other in others):
      value = json.loads(config[key])
      shown = " / ".join(value) if key == "views" else value
      yield f"{key.removeprefix('method.')}={shown}".replace("|", "\\|")


def _summary(name, rows):
  table = []
  for label, runs in rows:
    best = [_best(run) for run in runs]
    validated = [run["best_single"]["chosen_on"] == "validation" for run in runs]
    table.append(
      {
        "method": label,
        "views": _views(runs[0]),
        "students": runs[0]["students"],
        "n": len(runs),
        "best single network: last": spread([_last_single(run) for run in runs]),
        "best single network: best": spread([single for single, _ in best]),
        "best single network: chosen on validation": spread(
          [run["best_single"]["accuracy"] for run in runs] if all(validated) else []
        ),
        "any reader: best": spread([whole for _, whole in best]),
        "paper": _paper(name, runs[0]),
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


def _best(run):
  """The best accuracy on test of any single network, and of any reader."""
  readers = run["readers"].values()
  single = max(reader["best"] for reader in readers if reader["single"])
  return single, max(reader["best"] for reader in readers)


def _last_single(run):
  return max(reader["last"] for reader in run["readers"].values() if reader["single"])


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


def spread(fractions):
  """Fractions as "mean ± standard deviation" in %, ddof = 1; "" for none."""
  if not fractions:
    return ""
  percent = [100 * fraction for fraction in fractions]
  mean = f"{statistics.mean(percent):.2f}"
  return mean if len(percent) == 1 else f"{mean} ± {statistics.stdev(percent):.2f}"


def _paper(name, run):
  config = run["config"]
  method = run["method"]
  wrappers = [wrapper["name"] for wrapper in config.get("wrappers", ())]
  if wrappers:  # the paper wraps a single network, and once
    method = wrappers[0] if (method, len(wrappers), run["students"]) == ("base", 1, 1) else ""
  value = paper.number(*name, method, run["students"])
  return "" if value is None else f"{value:.2f}"


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
