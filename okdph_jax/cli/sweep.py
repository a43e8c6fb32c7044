"""`okdph sweep`: a grid of configs and seeds, one run each."""

import shlex
from pathlib import Path

from okdph_jax.cli.arguments import Parser, command, split_options

DESCRIPTION = """\
Runs every config of a sweep file with several seeds, each in its own run directory and process.
The same command resumes the runs that were stopped and skips those that are finished.

  okdph sweep digits --root=runs/sweep --jobs=2
  okdph sweep table1 --root=runs/table1 --only=method=okdph,network=resnet32 --seeds=5

--config.OPTION=VALUE changes an option of all runs.
"""


MANY = 1000  # more than there are seeds


def parser() -> Parser:
  parser = Parser("sweep", DESCRIPTION)
  parser.add_argument("sweep", help="a sweep file, or the name of one in configs/sweeps")
  parser.add_argument(
    "--root", metavar="DIR", help="directory of all runs (default: runs/NAME)"
  )
  parser.add_argument(
    "--only", metavar="NAME=VALUE,...", help="only the runs that match all of these"
  )
  parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, from 42 on")
  parser.add_argument(
    "--jobs",
    type=int,
    default=1,
    metavar="N",
    help="runs at a time, sharing the cores (%(default)s)",
  )
  parser.add_argument(
    "--stack-seeds",
    nargs="?",
    type=int,
    const=MANY,
    default=1,
    metavar="N",
    help="train the seeds of a config, at most N, in one program (for accelerators)",
  )
  parser.add_argument(
    "--print", action="store_true", help="print the commands of the unfinished runs and exit"
  )
  parser.add_argument(
    "--dry-run",
    action="store_true",
    help="print the steps, FLOPs and time that the runs need and exit",
  )
  parser.add_argument(
    "--slurm",
    nargs="?",
    const="",
    metavar="NAME=VALUE,...",
    help="submit the runs as Slurm jobs, with submitit's options: timeout_min=600,...",
  )
  return parser


@command
def main(arguments: list[str]) -> int:
  """Runs a sweep; the exit code."""
  spec, overrides, rest = split_options(arguments)
  if spec:
    raise ValueError(
      f"--config={spec}: a sweep has the configs of its file; change an option of all runs "
      "with --config.OPTION=VALUE"
    )
  flags = parser().parse(rest)
  counts = ("seeds", flags.seeds), ("jobs", flags.jobs), ("stack-seeds", flags.stack_seeds)
  for name, number in counts:
    if number is not None and number < 1:
      raise ValueError(f"--{name}={number}: at least 1 is needed")
  root = Path(flags.root or f"runs/{Path(flags.sweep).stem}")

  from okdph_jax.sweep import cells, runner

  every = cells.read(flags.sweep, root, flags.seeds, overrides)
  found = cells.select(every, flags.only) if flags.only else every
  if flags.print:
    for group in cells.stacked(runner.unfinished(found), flags.stack_seeds):
      print(shlex.join(["okdph", "train", *cells.arguments(group)]))
    return 0
  if flags.dry_run:
    from okdph_jax.sweep import forecast

    print(forecast.table(found, flags.jobs, every))
    return 0
  if flags.slurm is not None:
    from okdph_jax.sweep import slurm

    for name, job in slurm.submit(found, root, flags.slurm, flags.stack_seeds).items():
      print(f"{name}: job {job}")
    return 0
  return runner.Runner(found, flags.jobs, flags.stack_seeds).run()
