"""`okdph report`: tables, curves and a page of many runs; needs no JAX."""

import sys
from pathlib import Path

from okdph_jax.cli.arguments import Parser, command

DESCRIPTION = """\
Makes tables, curves and an interactive page of many runs, finished or not.

  okdph report runs                        print tables of all runs below runs/
  okdph report runs --out=report           write report.html and tables.md, .csv, .tex
  okdph report runs --baseline=base        with paired differences to base
  okdph report curves WORKDIR --out=PNG    draw the accuracy of every network of a run

docs/report.md explains the numbers.
"""


@command
def main(arguments: list[str]) -> int:
  """Prints or writes the tables; the exit code, 2 if there are no runs."""
  if arguments[:1] == ["curves"]:
    return _curves(arguments[1:])
  parser = Parser("report", DESCRIPTION)
  parser.add_argument("paths", nargs="+", help="directories of runs, or result files")
  parser.add_argument(
    "--out", metavar="DIR", help="write the tables and the page to this directory"
  )
  parser.add_argument(
    "--baseline", metavar="ROW", help="method to compare with, or a row's name in the tables"
  )
  parser.add_argument("--title", default="Runs", help="heading of the page (%(default)s)")
  parser.add_argument(
    "--head", action="store_true", help="print a short table, the most accurate first"
  )
  flags = parser.parse(arguments)

  from okdph_jax.report import runs, tables

  if flags.head and flags.out:
    raise ValueError("--head prints a table and writes none: leave --out or --head out")
  for path in flags.paths:
    if not Path(path).exists():
      raise ValueError(f"no such file or directory: {path}")
  trials, warnings = runs.find(flags.paths)
  for warning in warnings:
    print(warning, file=sys.stderr)
  if not trials:
    raise ValueError(
      f"no runs in {', '.join(flags.paths)}: name a run directory, or one above it"
    )
  if flags.head:
    print(tables.head(trials, flags.baseline), end="")
    return 0
  found = tables.sections(trials, flags.baseline)
  text = tables.render(found) + tables.gaps(trials)
  if not flags.out:
    print(text, end="")
    return 0
  from okdph_jax.report import page

  files = {
    "tables.md": text,
    "tables.csv": tables.csv(found),
    "tables.tex": tables.latex(found),
    "report.html": page.render(
      trials, found, title=flags.title, analyses=runs.analyses(flags.paths)
    ),
  }
  out = Path(flags.out)
  out.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (out / name).write_text(content, encoding="utf-8")
    print(out / name)
  return 0


def _curves(arguments):
  parser = Parser("report curves", DESCRIPTION)
  parser.add_argument("workdir", help="run directory, finished or not")
  parser.add_argument("--out", default="curves.png", help="picture to write (%(default)s)")
  flags = parser.parse(arguments)

  from okdph_jax.report import plots
  from okdph_jax.run import Run

  run = Run(flags.workdir)
  if not run.lines:
    raise ValueError(f"no evaluations in {flags.workdir}: name a run directory")
  plots.curves(run, flags.out)
  print(flags.out)
  return 0
