"""The command line: `okdph COMMAND ...`, one module with a `main(arguments)` per command.

Exit codes, of every command:

    0    it is done; a run is finished, now or before
    1    the run failed: the loss is no longer a number, the disk is full, ...; or predict left
         out a file that is no picture
    2    what was asked for cannot be done; one line says why, and nothing has been changed
    75   the run was interrupted: the same command goes on
    130  Ctrl-C stopped it at once; a run after a second Ctrl-C, or 143 after a second SIGTERM
"""

import sys
from importlib import import_module
from typing import NoReturn

from okdph_jax.cli.arguments import command
from okdph_jax.errors import nearest

COMMANDS = {  # module of this package -> what it does
  "train": "train a network, or go on with a run that was stopped",
  "sweep": "run a grid of configs and seeds: a table of the paper, an ablation, a comparison",
  "watch": "how far all runs under a folder are, refreshed",
  "evaluate": "accuracy, calibration and confusion matrix of a run's networks, on any dataset",
  "views": "a picture of what each network sees of the training images",
  "analysis": "flatness of trained networks: landscape, Hessian, sharpness, barriers, ...",
  "export": "a trained network as StableHLO, ONNX, TFLite and safetensors",
  "predict": "classes of pictures, a page to drop pictures on, and speed of the formats",
  "report": "tables and learning curves of finished runs",
}

HELP = """\
okdph: small, strong image classifiers by online knowledge distillation, in JAX.

Networks train together on differently augmented images and teach each other; one of
them is deployed. OKDPH (CVPR 2023, arXiv:2303.14666) and the methods that it is compared
with, on any image classification dataset.

commands (okdph COMMAND --help says more):
{commands}

examples:
  okdph train --config=digits                          a minute on a laptop
  okdph train --config=cifar10:okdph,resnet32 --config.epochs=60

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
  sys.exit(dispatch(arguments))
