"""What went wrong, in a line."""

import textwrap


def one_line(error, width=300):
  """An error's message in one line of at most `width` characters, or its kind."""
  return textwrap.shorten(str(error), width, placeholder=" ...") or type(error).__name__
