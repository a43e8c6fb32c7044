"""Tables and curves of finished runs.

python -m okdph_jax.cli.report docs/results [--head]      Markdown of every result below
python -m okdph_jax.cli.report curves WORKDIR --out=PNG   accuracy per reader over the epochs
"""

import argparse
import sys
from pathlib import Path


def main(arguments):
  """Prints what is asked for; returns the exit code: 2 where there is nothing to show."""
  if arguments[:1] == ["curves"]:
    return _curves(arguments[1:])
  parser = _parser("okdph_jax.report")
  parser.add_argument("paths", nargs="+", help="result files, or directories of them")
  parser.add_argument("--head", action="store_true", help="only the table for the README")
  flags = parser.parse_args(arguments)

  from okdph_jax.report import tables

  for path in flags.paths:
    if not Path(path).exists():
      return _fail(f"no such file or directory: {path}")
  results, warnings = tables.find(flags.paths)
  for warning in warnings:
    print(warning, file=sys.stderr)
  if not results:
    return _fail(
      f"no results in {', '.join(flags.paths)}: a run writes result.json into its --workdir "
      "when it finishes"
    )
  print(tables.render(results, head=flags.head), end="")
  return 0


def _curves(arguments):
  parser = _parser("okdph_jax.report curves")
  parser.add_argument("workdir", help="of a run, finished or not")
  parser.add_argument("--out", default="curves.png", help="the picture's path")
  flags = parser.parse_args(arguments)

  from okdph_jax.report import plots
  from okdph_jax.training import logbook

  try:
    lines = logbook.lines(flags.workdir)
    if not lines:
      return _fail(f"no evaluations in {flags.workdir}: pass the --workdir of a run")
    plots.curves(lines, flags.out)
  except (OSError, ValueError) as error:
    return _fail(error)
  print(flags.out)
  return 0


def _parser(name):
  return argparse.ArgumentParser(prog=f"python -m {name}", description=__doc__)


def _fail(message):
  print(message, file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
