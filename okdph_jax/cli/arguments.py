"""What the commands share: their parser, config options, and errors in one line."""

import argparse
import functools
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from okdph_jax.errors import DiskError, disk_full, nearest, one_line


class Parser(argparse.ArgumentParser):
  """argparse, with one line for what is wrong and the nearest option for an unknown one."""

  def __init__(self, name: str, description: str):
    super().__init__(
      prog=f"okdph {name}",
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def parse(self, arguments: list[str]) -> argparse.Namespace:
    """The options as a namespace; ValueError, in one line, for an unknown one."""
    found, rest = self.parse_known_intermixed_args(arguments)
    if rest:
      known = [*self._option_string_actions, "--config"]
      given = rest[0].partition("=")[0]
      raise ValueError(
        f"{rest[0]!r} is not an option{nearest(given, known)}; {self.prog} --help has all"
      )
    return found

  def error(self, message: str) -> NoReturn:
    raise ValueError(f"{message}; {self.prog} --help has all options")


def split_options(
  arguments: list[str], group: str = "config"
) -> tuple[str | None, list[tuple[str, str]], list[str]]:
  """(spec or None, [(name, text), ...], the other arguments) of a command line.

  "--config=X" and "--config X" give the spec, "--config.epochs=3", "--config.epochs 3" an
  option, wherever they stand; the last of equals counts. A lone "--config.flag" is true. Other
  groups have options only.
  """
  spec, options, rest = None, {}, []
  words = list(arguments)
  while words:
    word = words.pop(0)
    match = re.fullmatch(rf"--?{group}(?:\.([^=]*))?(?:=(.*))?", word, re.DOTALL)
    if not match:
      rest.append(word)
      continue
    name, text = match.groups()
    if text is None and words and not words[0].startswith("--"):
      text = words.pop(0)
    if name is None:
      if group != "config":
        raise ValueError(f"{word}: name an option of the {group}, such as --data.dir=DIR")
      if not text:
        raise ValueError("--config needs a value: --config=cifar10:okdph,resnet32")
      spec = text
    else:
      options[name] = "true" if text is None else text
  return spec, list(options.items()), rest


def command(main: Callable[[list[str]], int]) -> Callable[..., int]:
  """Decorates `main(arguments) -> exit code`: errors are printed in one line."""

  @functools.wraps(main)
  def run(arguments: list[str] | None = None) -> int:
    try:
      return main(sys.argv[1:] if arguments is None else list(arguments))
    except SystemExit as end:  # argparse's --help
      return int(end.code or 0)
    except BrokenPipeError:  # `okdph ... | head`
      sys.stderr.close()
      return 0
    except KeyboardInterrupt:
      print("okdph_jax: interrupted", file=sys.stderr)
      return 130
    except (ValueError, OSError) as error:
      print(f"okdph_jax: {one_line(error, width=sys.maxsize)}", file=sys.stderr)
      return 1 if isinstance(error, DiskError) or disk_full(error) else 2

  return run
