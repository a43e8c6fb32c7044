"""Error messages of one line."""

import difflib
import errno
import os
import textwrap
from collections.abc import Iterable


def one_line(error: object, width: int = 300) -> str:
  """An error's message in one line of at most `width` characters; its type if it has none."""
  return textwrap.shorten(str(error), width, placeholder=" ...") or type(error).__name__


class DiskError(OSError):
  """A file of a run could not be written: the disk is full, or fails."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full(error: Exception) -> str | None:
  """The message of a full disk in `error`, "No space left on device"; None for other errors."""
  texts = [os.strerror(number) for number in FULL]
  found = [text for text in texts if text in str(error)]
  return found[0] if found else None


def of_devices(error: Exception) -> bool:
  """Whether XLA raised `error`: a device is out of memory, or a process of a pod has died.

  Gloo, which connects the CPUs of a pod, may raise a ValueError instead.
  """
  return type(error).__name__ == "JaxRuntimeError" or "Gloo" in str(error)


def shown(value: object, width: int = 60) -> str:
  """`repr(value)` in one line, cut after `width` characters."""
  text = " ".join(repr(value).split())
  return text if len(text) <= width else f"{text[:width]}..."


def nearest(name: str, known: Iterable[str]) -> str:
  """A hint for a misspelt name, "; did you mean 'epochs'?"; "" if no known name is close."""
  close = difflib.get_close_matches(name, known, 1)
  return f"; did you mean {close[0]!r}?" if close else ""
