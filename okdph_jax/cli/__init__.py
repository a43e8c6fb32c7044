"""The command line: `okdph COMMAND ...`, one module with a `main(arguments)` per command.

Exit codes, of every command:

    0    done; for a run: finished, now or earlier
    1    the run failed: the loss is NaN or infinite, the disk is full, ...; or predict left out
         a file that is not a picture
    2    the command cannot be run as asked: one line says why, and nothing was changed
    75   the run was interrupted and has a checkpoint; the same command resumes it
    130  stopped at once by Ctrl-C (a run: by a second one), or 143 by a second SIGTERM
"""

import sys
from importlib import import_module
from typing import NoReturn

from okdph_jax.cli.arguments import command
from okdph_jax.errors import nearest
from okdph_jax.runtime import memory

COMMANDS = {  # module of this package -> what it does
  "train": "train networks as a config says, or resume a run that was stopped",
  "sweep": "run a grid of configs and seeds: a table of the paper, an ablation, a comparison",
  "watch": "show the progress of all runs below a directory",
  "evaluate": "measure accuracy, calibration and confusion of a run's networks, on any dataset",
  "views": "draw what each network sees of the training images",
  "analysis": "measure flatness: loss landscape, Hessian, sharpness, barriers, ...",
  "export": "write a trained network as StableHLO, ONNX, TFLite and safetensors",
  "predict": "classify pictures, serve a page to drop pictures on, or measure the speed",
  "report": "make tables, curves and an interactive page of many runs",
}

HELP = """\
okdph: small, accurate image classifiers by online knowledge distillation, in JAX.

Several networks train together on differently augmented images and learn from one
another; you deploy one of them. OKDPH (CVPR 2023, arXiv:2303.14666) and the methods that it
is compared with, on any image classification dataset.

commands (okdph COMMAND --help has the options):
{commands}

examples:
  okdph train --config=digits --workdir=runs/digits    about a minute on two CPU cores
  okdph evaluate --workdir=runs/digits
  okdph export --workdir=runs/digits

exit codes:
{codes}
"""


def help_text() -> str:
  """What the product is, on one screen."""
  width = max(map(len, COMMANDS))
  lines = "\n".join(f"  {name:{width}}  {does}" for name, does in COMMANDS.items())
  codes = (__doc__ or "").split("of every command:\n\n")[-1].rstrip().replace("    ", "  ", 1)
  return HELP.format(commands=lines, codes=codes.replace("\n    ", "\n  "))


@command
def dispatch(arguments: list[str]) -> int:
  """Runs the command that `arguments` begin with; the exit code."""
  name, *rest = arguments or ["--help"]
  if name in ("-h", "--help", "help"):
    print(help_text(), end="")
    return 0
  if name == "--version":
    from importlib.metadata import version

    print(f"okdph_jax {version('okdph_jax')}")
    return 0
  if name not in COMMANDS:
    raise ValueError(
      f"there is no command {name!r}{nearest(name, COMMANDS)} (there are {', '.join(COMMANDS)})"
    )
  return import_module(f"okdph_jax.cli.{name}").main(rest)


def main() -> NoReturn:
  """The program `okdph`: ends this process with the exit code."""
  arguments = sys.argv[1:]
  if arguments[:1] == ["train"]:
    from okdph_jax.cli import train

    train.program(arguments[1:])
  if arguments[:1] == ["sweep"] and "--dry-run" in arguments:
    memory.keep_large_blocks()  # the steps that it measures are then as fast as those of a run
  sys.exit(dispatch(arguments))
