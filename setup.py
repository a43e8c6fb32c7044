"""Builds the optional extension `okdph_jax.nn._onednn`; all else is in pyproject.toml.

Where the build finds a C++ compiler, jaxlib's headers and oneDNN's packages, the wheel is one
for this platform and has oneDNN's convolutions; else it is pure Python, and XLA's are used. A
run's summary says which.
"""

import importlib.metadata
import os
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


def extensions():
  compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
  ffi = located("jaxlib", "xla/ffi/api/ffi.h")
  header = located("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp")
  library = located("onednn-cpu-gomp", "libdnnl.so.3")
  if not (shutil.which(compiler) and ffi and header and library):
    return []
  return [
    Extension(
      "okdph_jax.nn._onednn",  # not a Python module: `ctypes` loads it
      ["okdph_jax/nn/onednn.cc"],
      extra_compile_args=[
        "-std=c++17",
        "-fopenmp",
        "-g0",
        *(f"-isystem{folder}" for folder in (ffi.parents[3], header.parents[2])),
      ],
      extra_link_args=["-fopenmp", str(library)],
      language="c++",
      py_limited_api=True,  # it uses nothing of Python's, so that one wheel serves all versions
      optional=True,  # a compiler that fails does not stop the installation
    )
  ]


found = extensions()
setup(ext_modules=found, options={"bdist_wheel": {"py_limited_api": "cp311"}} if found else {})
