"""What went wrong, in a line."""

import difflib
import textwrap
from collections.abc import Iterable


def one_line(error: object, width: int = 300) -> str:
  """An error's message in one line of at most `width` characters, or its kind."""
  return textwrap.shorten(str(error), width, placeholder=" ...") or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
  """ "; did you mean 'epochs'?": the known name that is nearest; "" where none is near."""
  close = difflib.get_close_matches(name, known, 1)
  return f"; did you mean {close[0]!r}?" if close else ""
