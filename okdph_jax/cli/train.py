"""`okdph train`: trains networks as a config says, or resumes a run that was stopped.

`python -m okdph_jax.main` is the same command. docs/configs.md has the configs and options.
"""

import argparse
import re
import shlex
import sys
from typing import TYPE_CHECKING, NoReturn

from okdph_jax.cli.arguments import Parser, command, split_options
from okdph_jax.errors import of_devices, one_line
from okdph_jax.runtime import memory, signals

if TYPE_CHECKING:  # a misspelt flag needs no config
  from ml_collections import ConfigDict

DESCRIPTION = """\
Trains networks as a config says. After an interruption, the same command resumes the run, and
the result has the same bits as that of a run that was never stopped.

  okdph train --config=digits
  okdph train --config=cifar10:dml,resnet32 --config.epochs=60 --workdir=runs/dml
  okdph train --config=cifar10:okdph,resnet32 --seeds=42,43 '--workdir=runs/okdph-seed{seed}'

okdph train --config=NAME --help shows the values of that config.
"""
SEED = "{seed}"  # is replaced by the seed of each run of --seeds


def parser() -> Parser:
  parser = Parser("train", DESCRIPTION)
  parser.add_argument(
    "--config",
    metavar="NAME[:ARGUMENT]",
    help="name or file of a config; --config.OPTION=VALUE changes an option",
  )
  parser.add_argument(
    "--workdir", metavar="DIR", help="run directory (default: runs/, named after the config)"
  )
  parser.add_argument(
    "--seeds",
    metavar="N,N,...",
    help=f"one run for each seed, all in one program; {SEED} in --workdir and options stands "
    "for the seed",
  )
  parser.add_argument("--pod", action="store_true", help="this is one of several processes")
  parser.add_argument("--print-config", action="store_true", help="print the config and exit")
  return parser


def parse(arguments: list[str]) -> tuple["ConfigDict", argparse.Namespace]:
  """(config, flags) of a command line; without --workdir, flags.workdir is the default one.

  flags.runs: (config, folder) of each run, several with --seeds. The first one is also
  (config, flags.workdir).

  Raises:
    ValueError: in one line, for an unknown option or a wrong value.
  """
  spec, overrides, rest = split_options(arguments)
  flags = parser().parse(rest)
  if spec is None:
    raise ValueError("--config=NAME[:ARGUMENT] is needed, e.g. --config=cifar10:okdph,resnet32")
  from okdph_jax.experiment.config import check, load_config, run_name

  flags.command = shlex.join(["okdph", "train", *arguments])
  flags.named = not flags.workdir
  if flags.named and flags.pod:
    raise ValueError("--pod needs --workdir=DIR, a directory that all processes see")
  flags.runs = []
  for options, workdir in of_each_seed(overrides, flags):
    config = load_config(spec, options)
    check(config)
    flags.runs.append((config, workdir or f"runs/{run_name(spec, options)}"))
  config, flags.workdir = flags.runs[0]
  return config, flags


def of_each_seed(
  overrides: list[tuple[str, str]], flags: argparse.Namespace
) -> list[tuple[list[tuple[str, str]], str | None]]:
  """(options, --workdir) of each run: one, or one for each seed of --seeds."""
  if flags.seeds is None:
    return [(overrides, flags.workdir)]
  seeds = flags.seeds.split(",")
  numbers = {int(seed) for seed in seeds if re.fullmatch(r"\d+", seed)}
  if len(numbers) < len(seeds):
    raise ValueError(f"--seeds={flags.seeds}: give different whole numbers, such as 42,43,44")
  if "seed" in dict(overrides):
    raise ValueError("--config.seed and --seeds: leave one of them out")
  if flags.pod:
    raise ValueError("--pod and --seeds: a pod trains one run at a time; leave one of them out")
  if flags.workdir and SEED not in flags.workdir:
    raise ValueError(
      f"--workdir={flags.workdir} is one directory; --seeds needs one per seed, such as "
      f"'--workdir={flags.workdir}-seed{SEED}'"
    )

  def of(seed):
    own = [(name, text.replace(SEED, seed)) for name, text in overrides]
    return [*own, ("seed", seed)], flags.workdir and flags.workdir.replace(SEED, seed)

  return [of(seed) for seed in seeds]


def show_help(arguments: list[str]) -> None:
  """Prints the options, with the values of --config if it is given."""
  from okdph_jax.experiment import options

  spec, overrides, _ = split_options(arguments)
  print(parser().format_help())
  if spec is None:
    print("options of a config (--config.OPTION=VALUE) and their defaults:\n")
    print(options.table(tablefmt="simple"))
    return
  from okdph_jax.experiment.config import flat, load_config

  values = flat(load_config(spec, overrides))
  print(f"options of --config={spec} (--config.OPTION=VALUE) and their values:\n")
  print(options.table(options.DEFAULTS | values, tablefmt="simple"))
  print(f"\noptions of the method {values['method.name']}:\n")
  for name, value in values.items():
    if name.startswith("method.") and name != "method.name":
      print(f"  {name}={value}")


@command
def main(arguments: list[str]) -> int:
  """Trains; the exit code."""
  if {"-h", "--help", "--helpfull"} & set(arguments):
    show_help([a for a in arguments if a not in ("-h", "--help", "--helpfull")])
    return 0
  config, flags = parse(arguments)
  if flags.print_config:
    print(config, end="")
    return 0
  if flags.named:
    for _, workdir in flags.runs:
      print(f"workdir {workdir}", flush=True)
  return train(flags)


def train(flags: argparse.Namespace) -> int:
  # These import JAX, which a misspelt flag does not need.
  from okdph_jax.experiment.fit import fit, fit_seeds
  from okdph_jax.runtime import distributed

  try:
    if flags.pod:
      distributed.join()
    if flags.seeds is None:
      fit(*flags.runs[0], command=flags.command)
    else:
      fit_seeds(*zip(*flags.runs, strict=True), command=flags.command)
    return 0
  except signals.Interrupted as stopped:
    if distributed.is_leader():
      print(stopped)
    return 75
  except FloatingPointError as error:
    meaning = one_line(error, width=sys.maxsize)
  except (RuntimeError, ValueError) as error:
    meaning = at_run_time(error, flags.pod)
    if not meaning:
      raise
  print(f"okdph_jax: {meaning}", file=sys.stderr)
  return 1


def at_run_time(error: Exception, pod: bool) -> str | None:
  """What an error of XLA means, in one line; None for other errors and for bugs."""
  if not of_devices(error):
    return None
  if "RESOURCE_EXHAUSTED" in str(error):
    return (
      f"a device ran out of memory ({one_line(error)}); lower config.batch_size, or compute "
      "the batch in parts with config.accumulate"
    )
  if pod:
    return (
      f"the pod lost a process ({one_line(error)}); its output says why, and the same command "
      "resumes from the last checkpoint"
    )
  return None


def program(arguments: list[str]) -> NoReturn:
  """Trains and ends this process with the exit code."""
  if not {"-h", "--help", "--print-config"} & set(arguments):
    signals.hold()
    memory.keep_large_blocks()
    signals.listen()
  code = main(arguments)
  if code in (1, 2) and "jax" in sys.modules:
    from okdph_jax.runtime import distributed

    distributed.exit_without_barrier(code)
  sys.exit(code)
