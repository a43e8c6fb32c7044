"""`okdph train`: trains networks as a config says, or resumes a run that was stopped.

`python -m okdph_jax.main` is the same command. docs/configs.md has the configs and options.
"""

import argparse
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

okdph train --config=NAME --help shows the values of that config.
"""


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
  parser.add_argument("--pod", action="store_true", help="this is one of several processes")
  parser.add_argument("--print-config", action="store_true", help="print the config and exit")
  return parser


def parse(arguments: list[str]) -> tuple["ConfigDict", argparse.Namespace]:
  """(config, flags); flags.workdir is the default folder where none is given.

  Raises:
    ValueError: in one line, for anything that is wrong.
  """
  spec, overrides, rest = split_options(arguments)
  flags = parser().parse(rest)
  if spec is None:
    raise ValueError("--config=NAME[:ARGUMENT] is needed, e.g. --config=cifar10:okdph,resnet32")
  from okdph_jax.experiment.config import check, load_config, run_name

  config = load_config(spec, overrides)
  check(config)
  flags.command = shlex.join(["okdph", "train", *arguments])
  flags.named = not flags.workdir
  if flags.named:
    if flags.pod:
      raise ValueError("--pod needs --workdir=DIR, a directory that all processes see")
    flags.workdir = f"runs/{run_name(spec, overrides)}"
  return config, flags


def show_help(arguments: list[str]) -> None:
  """The options, with the values of the --config if there is one."""
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
    print(f"workdir {flags.workdir}", flush=True)
  return train(config, flags)


def train(config: "ConfigDict", flags: argparse.Namespace) -> int:
  from okdph_jax.experiment.fit import fit  # JAX comes with it: a misspelt flag needs no JAX
  from okdph_jax.runtime import distributed

  try:
    if flags.pod:
      distributed.join()
    fit(config, flags.workdir, command=flags.command)
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
  """What an error of XLA means, in one line; None where it is none, or a mistake of ours."""
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
