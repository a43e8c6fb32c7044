"""Writes what is generated in README.md and docs/: `python docs/build.py` after a new result.

A generated part stands between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
from pathlib import Path

from okdph_jax.experiment import options
from okdph_jax.report import plots, tables

ROOT = Path(__file__).parents[1]


def generated():
  """{file: {name of the part: its text}}."""
  results, warnings = tables.find([ROOT / "docs" / "results"])
  if warnings:
    raise ValueError("; ".join(warnings))
  (table,) = re.findall(r"(?:^\|.*\n)+", tables.render(results, head=True), re.M)
  return {
    "README.md": {"accuracy": table},
    "docs/configs.md": {"options": options.table()},
    "docs/results.md": {"tables": tables.render(results)},
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
  results, _ = tables.find([ROOT / "docs" / "results"])
  ((name, rows),) = tables.grouped(results, hidden={"views"})
  rows = [
    (
      label,
      {"single": tables.last(runs, single=True), "several": tables.last(runs, single=False)},
    )
    for label, runs in rows
  ]
  plots.comparison(rows, tables.title(name), ROOT / "docs" / "accuracy.png")


if __name__ == "__main__":
  picture()
  for file, parts in generated().items():
    path = ROOT / file
    path.write_text(with_parts(path.read_text(), parts))
