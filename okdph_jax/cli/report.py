"""`okdph report`: tables, curves and a page of many runs; needs no JAX."""

import sys
from pathlib import Path

from okdph_jax.cli.arguments import Parser, command

DESCRIPTION = """\
Tables, curves and a page of many runs, finished or not.

  okdph report runs                        Markdown of every run below
  okdph report runs --out=report           report/tables.md, .csv, .tex and report.html
  okdph report runs --baseline=base        with paired differences to base
  okdph report curves WORKDIR --out=PNG    accuracy of every network over the epochs

docs/report.md says what the numbers mean.
"""


@command
def main(arguments: list[str]) -> int:
  """Prints or writes what is asked for; the exit code, 2 where there is nothing to show."""
  if arguments[:1] == ["curves"]:
    return _curves(arguments[1:])
  parser = Parser("report", DESCRIPTION)
  parser.add_argument("paths", nargs="+", help="result files, or folders of runs")
  parser.add_argument("--out", metavar="DIR", help="write the tables and the page there")
  parser.add_argument(
    "--baseline", metavar="ROW", help="compare with this method, or row as the tables name it"
  )
  parser.add_argument("--title", default="Runs", help="of the page (%(default)s)")
  parser.add_argument(
    "--head", action="store_true", help="print one short table each, the most accurate first"
  )
  flags = parser.parse(arguments)

  from okdph_jax.report import runs, tables

  for path in flags.paths:
    if not Path(path).exists():
      raise ValueError(f"no such file or directory: {path}")
  trials, warnings = runs.find(flags.paths)
  for warning in warnings:
    print(warning, file=sys.stderr)
  if not trials:
    raise ValueError(
      f"no runs in {', '.join(flags.paths)}: pass the --workdir of a run, or a folder above"
    )
  if flags.head:
    print(tables.head(trials), end="")
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
  parser.add_argument("workdir", help="of a run, finished or not")
  parser.add_argument("--out", default="curves.png", help="the picture's path")
  flags = parser.parse(arguments)

  from okdph_jax.report import plots
  from okdph_jax.run import Run

  run = Run(flags.workdir)
  if not run.lines:
    raise ValueError(f"no evaluations in {flags.workdir}: pass the --workdir of a run")
  plots.curves(run, flags.out)
  print(flags.out)
  return 0
