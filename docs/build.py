"""Writes what is generated in README.md and docs/: `python docs/build.py` after a new result.

A generated part stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import json
import re
from pathlib import Path

from tabulate import tabulate

from okdph_jax.analysis import replicates
from okdph_jax.experiment import options
from okdph_jax.intervals import Interval
from okdph_jax.report import plots, runs, statistics, tables

ROOT = Path(__file__).parents[1]
RANKING, RESNET32, COMPUTE = "cifar10_small", "resnet32", "compute"  # folders of docs/results
BASELINE = "base, students=1, views=any(hflip, cutout, augment)"
RESNET32_BASELINE = "base, views=any(hflip, cutout, augment)"
FLOAT32 = "okdph, batch_norm_images=None, compute=float32"
FIGURES = ROOT / "docs" / "figures"
CURVATURE = {
  "eigenvalue_1": "largest eigenvalue",
  "eigenvalue_5": "fifth eigenvalue",
  "trace": "trace of the Hessian",
  "normalised_trace": "trace, normalised",
}
FLATNESS = {  # docs/figures/NAME.json -> {measure: as flatness.md calls it}
  "sharpness": {
    "test_accuracy": "test accuracy",
    "weight_norm": "weight norm",
    "kl_table": "KL of Table S5 [10⁶ nats]",
    "epsilon_0.01": "ε-sharpness, ρ = 0.01 [nats]",
    "adaptive_0.01": "adaptive sharpness, ρ = 0.01 [nats]",
    "expected": "expected, σ = 0.1 w [nats]",
  },
  "pac_bayes": {
    "inverse_sigma_squared": "1/σ², accuracy - 0.1",
    "inverse_relative_sigma_squared": "1/σ², σ in units of w",
  },
  "hessian": CURVATURE,
  "noise": {"σ = 1": "accuracy at input noise 1"},
  "barrier": {
    "relative_distance": "distance / norm",
    "barrier_reestimated": "barrier [nats]",
    "barrier_mixed": "barrier, statistics mixed [nats]",
  },
}
COMPARED = ("base3", "okdph", "okdph-release", "dml")
DIFFERENCES = (
  ("okdph", "base3"),
  ("okdph-release", "base3"),
  ("dml", "base3"),
  ("okdph", "dml"),
)
GENERATIONS = {
  "test_accuracy": "test accuracy",
  "weight_norm": "weight norm",
  "train_loss": "training loss [nats]",
  "train_margin": "margin",
  "train_entropy": "entropy [nats]",
  "largest_eigenvalue": "largest eigenvalue",
  "expected_sharpness": "expected sharpness [nats]",
}
PAIRS = (  # of self-distillation: runs - what they are compared with
  ("born/generation_0", "base1"),
  ("born/generation_1", "born/generation_0"),
  ("born/generation_2", "born/generation_1"),
  ("born/generation_3", "born/generation_2"),
  ("born/generation_3", "base1"),
  ("labels", "base1"),
  ("smoothed", "born/generation_0"),
  ("by-okdph", "okdph"),
  ("by-ensemble", "base1"),
  ("by-ensemble-again", "by-ensemble"),
  ("dot", "by-ensemble"),
)
DOT = {
  "task_loss": "task loss [nats]",
  "distillation_loss": "distillation loss [nats]",
  "test_accuracy": "test accuracy",
  "task_distill": "cos(task, distillation)",
  "task_update": "cos(task, update)",
  "distill_update": "cos(distillation, update)",
}


def results(name):
  """The committed runs of one comparison."""
  trials, warnings = runs.find([ROOT / "docs" / "results" / name])
  if warnings:
    raise ValueError("; ".join(warnings))
  return trials


def generated():
  """{file: {name of the part: its text}}."""
  ranking = results(RANKING)
  (section,) = tables.sections(ranking, BASELINE)
  summary, readers = section.tables[:2], section.tables[2:]
  return {
    "docs/flatness.md": flatness(),
    "docs/self-distillation.md": self_distillation(),
    "README.md": {"accuracy": ranked(ranking, BASELINE)},
    "docs/scaling.md": {COMPUTE: ranked(results(COMPUTE), FLOAT32)},
    "docs/configs.md": {"options": options.table()},
    "docs/results.md": {
      RANKING: tables.render([section._replace(tables=summary)]),
      f"{RANKING}_readers": "\n\n".join(
        part for table in readers for part in (table.caption, tables.markdown(table))
      ),
      RESNET32: tables.render(
        tables.sections(results(RESNET32), RESNET32_BASELINE)
      ).removeprefix(tables.NOTES),
    },
  }


def ranked(trials, baseline):
  """A table of the methods' means and their differences to the baseline."""
  (table,) = re.findall(r"(?:^\|.*\n)+", tables.head(trials, baseline), re.M)
  return table


def flatness():
  """{name of the part: Markdown table} of flatness.md, from the numbers of its figures."""
  measures, differences = [], []
  for name, titles in FLATNESS.items():
    found = {other: replicates.summary(networks(name), other) for _, other in DIFFERENCES}
    entries = found["base3"]["entries"]
    for measure, title in titles.items():
      means = {entry: replicates.spread(**entries[entry][measure]) for entry in COMPARED}
      measures.append({"": title} | means)
      between = {
        f"{entry} - {other}": replicates.difference(found[other]["differences"][entry][measure])
        for entry, other in DIFFERENCES
      }
      differences.append({"": title} | between)
  return github(measures=measures, differences=differences)


def self_distillation():
  """The same of self-distillation.md."""
  ablation = networks("ablation")
  pairs = []
  for entry, other in PAIRS:
    between = replicates.summary(ablation, other)["differences"][entry]
    pairs.append({"": f"`{entry}` - `{other}`"} | cells(between, GENERATIONS))
  return github(
    generations=rows(replicates.summary(ablation)["entries"], GENERATIONS),
    pairs=pairs,
    curvature=compared("generations", "base1", CURVATURE),
    terms=compared("dot", "by-ensemble", DOT),
  )


def github(**parts):
  """{name: Markdown table} of {name: rows}."""
  return {
    name: tabulate(table, "keys", "github", disable_numparse=True)
    for name, table in parts.items()
  }


def networks(figure):
  """{network: {measure: number}} of an analysis, the rows of its replicates."""
  return json.loads((FIGURES / f"{figure}.json").read_text())["scalars"]


def compared(figure, baseline, titles):
  """Rows of the entries of a figure, and of their differences to the baseline."""
  found = replicates.summary(networks(figure), baseline)
  difference = rows(found["differences"], titles, f" - `{baseline}`")
  return rows(found["entries"], titles) + difference


def rows(entries, titles, suffix=""):
  """A row of `cells` for every entry."""
  return [{"": f"`{entry}`{suffix}"} | cells(row, titles) for entry, row in entries.items()]


def cells(row, titles):
  """Means with their deviations, or differences with their intervals."""
  return {
    title: replicates.difference(x)
    if isinstance(x := row[measure], Interval)
    else replicates.spread(**x)
    for measure, title in titles.items()
  }


def with_parts(text, parts):
  """`text` with its generated parts replaced."""
  for name, part in parts.items():
    between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)"
    text, replaced = re.subn(between, lambda _, part=part: f"\n{part}\n", text, flags=re.S)
    if replaced != 1:
      raise ValueError(f"the markers of {name!r} are there {replaced} times, not once")
  return text


def picture():
  """The accuracies of the committed ranking."""
  ((group, rows),) = runs.grouped(results(RANKING))
  base = dict(rows)[BASELINE]
  compared = []
  for label, trials in rows:
    several = [statistics.highest(trial, "last", single=False) for trial in trials]
    compared.append(
      plots.Compared(
        label,
        statistics.accuracies(trials, "students"),
        [accuracy for accuracy in several if accuracy is not None],
        None if label == BASELINE else statistics.difference(trials, base, "students"),
      )
    )
  plots.comparison(compared, group.title, ROOT / "docs" / "accuracy.png")


if __name__ == "__main__":
  picture()
  for file, parts in generated().items():
    path = ROOT / file
    path.write_text(with_parts(path.read_text(), parts))
