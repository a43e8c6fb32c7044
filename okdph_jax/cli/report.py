"""`okdph report`: tables and curves of finished runs; needs no JAX."""

import sys
from pathlib import Path

from okdph_jax.cli.arguments import Parser, command

DESCRIPTION = """\
Tables and curves of finished runs.

  okdph report runs [--head]               Markdown of every result below
  okdph report curves WORKDIR --out=PNG    accuracy of every network over the epochs
"""


@command
def main(arguments: list[str]) -> int:
  """Prints what is asked for; returns the exit code: 2 where there is nothing to show."""
  if arguments[:1] == ["curves"]:
    return _curves(arguments[1:])
  parser = Parser("report", DESCRIPTION)
  parser.add_argument("paths", nargs="+", help="result files, or directories of them")
  parser.add_argument(
    "--head", action="store_true", help="one short table each, the most accurate first"
  )
  flags = parser.parse(arguments)

  from okdph_jax.report import tables

  for path in flags.paths:
    if not Path(path).exists():
      raise ValueError(f"no such file or directory: {path}")
  results, warnings = tables.find(flags.paths)
  for warning in warnings:
    print(warning, file=sys.stderr)
  if not results:
    raise ValueError(
      f"no results in {', '.join(flags.paths)}: a run writes result.json into its --workdir "
      "when it finishes"
    )
  print(tables.render(results, head=flags.head), end="")
  return 0


def _curves(arguments):
  parser = Parser("report curves", DESCRIPTION)
  parser.add_argument("workdir", help="of a run, finished or not")
  parser.add_argument("--out", default="curves.png", help="the picture's path")
  flags = parser.parse(arguments)

  from okdph_jax.report import plots
  from okdph_jax.run import Run

  lines = Run(flags.workdir).lines
  if not lines:
    raise ValueError(f"no evaluations in {flags.workdir}: pass the --workdir of a run")
  plots.curves(lines, flags.out)
  print(flags.out)
  return 0
