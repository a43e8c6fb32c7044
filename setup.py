"""Builds the two optional extensions; all else is in pyproject.toml.

`okdph_jax.runtime._memory`, where the build finds a C compiler and glibc, keeps large blocks of
memory; `okdph_jax.nn._onednn`, where it also finds jaxlib's headers and oneDNN's packages, has
oneDNN's convolutions (a run's summary says whether they are in use). With either the wheel is
one for this platform, else it is pure Python.
"""

import importlib.metadata
import os
import platform
import shutil
import sysconfig
from pathlib import Path

from setuptools import Extension, setup


def located(package, ending):
  """The file of an installed package whose name ends so, or None."""
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    return None
  return next((Path(f.locate()).resolve() for f in files if str(f).endswith(ending)), None)


def extension(name, *sources, **options):
  """A library built from `sources`; not a Python module: the loader or `ctypes` loads it."""
  return Extension(
    name,
    list(sources),
    py_limited_api=True,  # it uses nothing of Python's, so that one wheel serves all versions
    optional=True,  # a compiler that fails does not stop the installation
    **options,
  )


def extensions():
  compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
  if not shutil.which(compiler):
    return []
  found = []
  if platform.libc_ver()[0] == "glibc":
    found.append(extension("okdph_jax.runtime._memory", "okdph_jax/runtime/memory.c"))
  ffi = located("jaxlib", "xla/ffi/api/ffi.h")
  header = located("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp")
  library = located("onednn-cpu-gomp", "libdnnl.so.3")
  if ffi and header and library:
    folders = (f"-isystem{folder}" for folder in (ffi.parents[3], header.parents[2]))
    onednn = extension(
      "okdph_jax.nn._onednn",
      "okdph_jax/nn/onednn.cc",
      "okdph_jax/nn/channel_sums.cc",
      extra_compile_args=["-std=c++17", "-fopenmp", "-g0", *folders],
      extra_link_args=["-fopenmp", str(library)],
      language="c++",
    )
    found.append(onednn)
  return found


found = extensions()
setup(ext_modules=found, options={"bdist_wheel": {"py_limited_api": "cp311"}} if found else {})
