"""What went wrong, in a line."""

import difflib
import textwrap


def one_line(error, width=300):
  """An error's message in one line of at most `width` characters, or its kind."""
  return textwrap.shorten(str(error), width, placeholder=" ...") or type(error).__name__


def nearest(name, known):
  """ "; did you mean 'epochs'?": the known name that is nearest; "" where none is near."""
  close = difflib.get_close_matches(name, known, 1)
  return f"; did you mean {close[0]!r}?" if close else ""
