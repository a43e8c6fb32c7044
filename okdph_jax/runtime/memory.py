"""Memory on the host: huge pages for XLA:CPU's buffers, and returning what compiling freed."""

import ctypes
import importlib.util
import os
import platform
import re
import sys


def keep_large_blocks() -> None:
  """Restarts this program so that large blocks lie on huge pages and are reused when freed.

  XLA:CPU allocates its buffers in every step, and glibc lets the kernel map and clear them each
  time: 260,000 page faults and 0.77 s of system time in a step of three ResNet32; on huge pages
  14,000 and 0.13 s; with `memory.c`, preloaded if it was built, none. The loader reads these
  environment variables only when a program starts, hence the restart. Call it first, and only
  in a `__main__`. It does nothing if the variables are set, or without glibc.
  """
  if platform.libc_ver()[0] != "glibc":
    return
  found = importlib.util.find_spec("okdph_jax.runtime._memory")
  library = (found.origin or "") if found else ""
  if re.search(r"[\s:]", library):  # the loader would take it for several
    library = ""
  wanted = {"LD_PRELOAD": library, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
  missing = {
    name: value
    for name, value in wanted.items()
    if value.split("=")[0] not in os.environ.get(name, "")
  }
  if not missing:
    return
  for name, value in missing.items():
    os.environ[name] = ":".join(filter(None, [os.environ.get(name), value]))
  sys.stdout.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def return_freed() -> None:
  """Gives the system what small blocks have been freed: a compiler leaves hundreds of MB."""
  if platform.libc_ver()[0] == "glibc":
    ctypes.CDLL(None).malloc_trim(0)
