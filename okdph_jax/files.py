"""Files that survive a kill: JSON, lines of JSON, and locks.

A file is written whole or not at all. An incomplete last line, left by a kill, is ignored when
it is read, and removed when another line is appended.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from okdph_jax.errors import DiskError, one_line, shown

Shape = Any  # {key: type or shape}, the least a value must have; {str: shape} for any keys


def read_json(path: Path, shape: Shape) -> Any | None:
  """The content of a JSON file, or None if there is no such file.

  Raises:
    ValueError: in one line, if it is not JSON of this shape.
  """
  try:
    text = path.read_bytes()
  except (FileNotFoundError, NotADirectoryError):
    return None
  return _parsed(text, path, shape)


def read_lines(path: Path, shape: Shape) -> list[Any]:
  """The lines of a file of JSON lines, without a last one that is incomplete.

  Raises:
    ValueError: in one line, if another line is not JSON of this shape.
  """
  return [
    _parsed(text, f"{path}, line {number}", shape)
    for number, text in enumerate(_complete_lines(path).split(b"\n"), start=1)
    if text
  ]


def write(path: Path, text: str) -> None:
  """Replaces a file; after an error or a kill the old one is still there.

  Raises:
    DiskError: in one line, if it cannot be written.
  """
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with _disk_errors(path), open(temporary, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_json(path: Path, tree: Any) -> None:
  """Replaces a file by JSON; see `write`."""
  write(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def write_lines(path: Path, lines: Iterable[Any]) -> None:
  """Replaces a file by lines of JSON; see `write`."""
  write(path, "".join(json.dumps(line) + "\n" for line in lines))


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
  """Appends lines of JSON, after removing an incomplete last one.

  Raises:
    DiskError: in one line, if the file cannot be written.
  """
  complete = _complete_lines(path)
  with _disk_errors(path), open(path, "ab") as file:
    file.truncate(len(complete))
    if complete and not complete.endswith(b"\n"):
      file.write(b"\n")
    for line in lines:
      file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def misfit(value: Any, shape: Shape, name: str = "it") -> str | None:
  """How a value from JSON differs from `shape`, in one line; None if it does not."""
  if isinstance(shape, dict):
    if not isinstance(value, dict):
      return f"{name} is {shown(value, 40)}, not an object"
    inner = dict.fromkeys(value, shape[str]) if str in shape else shape
    parts = [
      misfit(value[key], inner[key], key if name == "it" else f"{name}.{key}")
      if key in value
      else f"{name} has no {key!r}"
      for key in inner
    ]
    return next(filter(None, parts), None)
  kinds = shape if isinstance(shape, tuple) else (shape,)
  right = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
  if right and not (isinstance(value, float) and not math.isfinite(value)):
    return None
  return f"{name} is {shown(value, 40)}, not of type {kinds[-1].__name__}"


def lock(path: Path) -> TextIO:
  """Locks a file, which is made with its folder, and writes this process into it.

  Returns the open file: the lock lasts until it is closed, or this process ends.

  Raises:
    ValueError: in one line, if another process has the lock, or the file cannot be written.
  """
  folder = path.parent
  while True:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      file = open(path, "a+", encoding="utf-8")
    except OSError as error:
      raise ValueError(
        f"cannot write to --workdir={folder}: {error.strerror}; choose another folder"
      ) from error
    try:
      _flock(file)
    except BlockingIOError:
      with file:
        file.seek(0)
        holder = file.read().strip() or "another process"
      raise ValueError(
        f"{holder} is writing to {folder}; wait until it ends, or choose another --workdir"
      ) from None
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
        raise
      print(
        f"{folder}: this file system has no locks; do not start another process on this run"
      )
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
      break
    file.close()  # the process that held it has removed it: lock a new file
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  file.flush()
  return file


def lock_holder(path: Path) -> str | None:
  """The process that has the lock, "process 123 on host"; None if there is none."""
  try:
    with open(path, encoding="utf-8") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
      except BlockingIOError:
        return file.read().strip() or "another process"
  except OSError:  # there is no such file, or the file system has no locks
    pass
  return None


def _flock(file):
  """Locks an open file; `lock_holder` locks it for a moment, so a refusal is tried again."""
  for wait in (0.05, 0.1, 0):
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if not wait:
        raise
      time.sleep(wait)


def _parsed(text: bytes, where: Any, shape: Shape) -> Any:
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as error:  # also if it is not UTF-8
    wrong = f"it is not JSON ({one_line(error, 80)})"
  else:
    wrong = misfit(found, shape)
    if not wrong:
      return found
  raise ValueError(f"{where}: {wrong}; restore the file, or choose another folder") from None


def _complete_lines(path: Path) -> bytes:
  """The content without an incomplete last line; a complete one may lack its newline."""
  try:
    text = path.read_bytes()
  except FileNotFoundError:
    return b""
  end = text.rfind(b"\n") + 1
  with contextlib.suppress(ValueError):
    json.loads(text[end:])  # fails for a part of a line
    return text
  return text[:end]


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
  """Raises errors of writing as a `DiskError`."""
  try:
    yield
  except OSError as error:
    raise DiskError(
      f"{path} cannot be written: {error.strerror}; make room, and the same command resumes "
      "the run"
    ) from error
