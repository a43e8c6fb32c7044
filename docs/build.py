"""Writes what is generated in README.md and docs/: `python docs/build.py` after a new result.

A generated part stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
from pathlib import Path

from okdph_jax.experiment import options
from okdph_jax.report import plots, runs, statistics, tables

ROOT = Path(__file__).parents[1]


def generated():
  """{file: {name of the part: its text}}."""
  trials, warnings = runs.find([ROOT / "docs" / "results"])
  if warnings:
    raise ValueError("; ".join(warnings))
  (table,) = re.findall(r"(?:^\|.*\n)+", tables.head(trials), re.M)
  return {
    "README.md": {"accuracy": table},
    "docs/configs.md": {"options": options.table()},
    "docs/results.md": {"tables": tables.render(tables.sections(trials))},
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
  """The accuracies of the committed results."""
  trials, _ = runs.find([ROOT / "docs" / "results"])
  ((group, rows),) = runs.grouped(trials, hidden={"views"})

  def last(trials, single):
    found = (statistics.highest(trial, "last", single=single) for trial in trials)
    return [accuracy for accuracy in found if accuracy is not None]

  rows = [
    (label, {"single": last(trials, True), "several": last(trials, False)})
    for label, trials in rows
  ]
  plots.comparison(rows, group.title, ROOT / "docs" / "accuracy.png")


if __name__ == "__main__":
  picture()
  for file, parts in generated().items():
    path = ROOT / file
    path.write_text(with_parts(path.read_text(), parts))
