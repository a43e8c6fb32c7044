"""`python -m okdph_jax.main --config=configs/cifar10.py`: the command `okdph train`."""

import sys

from okdph_jax.cli.train import main, parse, program

__all__ = ["main", "parse"]

if __name__ == "__main__":
  program(sys.argv[1:])
