"""What went wrong, in a line."""

import difflib
import errno
import os
import textwrap
from collections.abc import Iterable


def one_line(error: object, width: int = 300) -> str:
  """An error's message in one line of at most `width` characters, or its kind."""
  return textwrap.shorten(str(error), width, placeholder=" ...") or type(error).__name__


class DiskError(OSError):
  """Something that a run needs could not be written: the disk is full, or fails."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full(error: Exception) -> str | None:
  """What of the disk `error` says, "No space left on device"; None where it is another."""
  texts = [os.strerror(number) for number in FULL]
  found = [text for text in texts if text in str(error)]
  return found[0] if found else None


def of_devices(error: Exception) -> bool:
  """Whether XLA raised it: a device without memory, or a process of the pod that is gone.

  What Gloo, the collectives of CPUs, cannot send may come as a ValueError.
  """
  return type(error).__name__ == "JaxRuntimeError" or "Gloo" in str(error)


def shown(value: object, width: int = 60) -> str:
  """What was given, as Python writes it, in one line; the beginning of what is longer."""
  text = " ".join(repr(value).split())
  return text if len(text) <= width else f"{text[:width]}..."


def nearest(name: str, known: Iterable[str]) -> str:
  """ "; did you mean 'epochs'?": the known name that is nearest; "" where none is near."""
  close = difflib.get_close_matches(name, known, 1)
  return f"; did you mean {close[0]!r}?" if close else ""
