"""Writes what is generated in README.md and docs/: `python docs/build.py` after a new result.

A generated part stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
from pathlib import Path

from okdph_jax.experiment import options
from okdph_jax.report import plots, runs, statistics, tables

ROOT = Path(__file__).parents[1]
RANKING, RESNET32 = "cifar10_small", "resnet32"  # folders of docs/results
BASELINE = "base, students=1, views=any(hflip, cutout, augment)"


def results(name):
  """The committed runs of one comparison."""
  trials, warnings = runs.find([ROOT / "docs" / "results" / name])
  if warnings:
    raise ValueError("; ".join(warnings))
  return trials


def generated():
  """{file: {name of the part: its text}}."""
  ranking = results(RANKING)
  (table,) = re.findall(r"(?:^\|.*\n)+", tables.head(ranking, BASELINE), re.M)
  return {
    "README.md": {"accuracy": table},
    "docs/configs.md": {"options": options.table()},
    "docs/results.md": {
      RANKING: tables.render(tables.sections(ranking, BASELINE)),
      RESNET32: tables.render(tables.sections(results(RESNET32))).removeprefix(tables.NOTES),
    },
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
