"""Devices, meshes and placement of arrays, compiler options, and the compilation cache."""

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

# From so many parameters on, a batch is not split over the cores by default: each host device
# has its own copy of state and gradients, whose sum and update cost more than the split saves.
ONE_DEVICE_FROM = 8_000_000


def configure(
  devices: int | None = None, batch: int | None = None, parameters: int = 0
) -> None:
  """Prepares JAX in this process: `devices` host devices on a CPU. Call it before using JAX.

  devices: in each process of a pod; by default one per core, at most 4, such that they divide
  `batch`, the images per step, and one where a network has many `parameters`. On accelerators
  `mesh` chooses the devices.
  """
  if devices is not None and devices < 1:
    raise ValueError(f"devices={devices} must be at least 1; by default it is one per core")
  if devices and batch and batch % devices:
    raise ValueError(
      f"devices={devices} does not divide batch_size={batch}; choose a number that does"
    )
  most = 1 if parameters >= ONE_DEVICE_FROM else min(cores(), 4)
  count = devices or next(n for n in range(most, 0, -1) if (batch or n) % n == 0)
  with contextlib.suppress(RuntimeError):  # JAX is in use already, as in a notebook
    jax.config.update("jax_num_cpu_devices", count)
  # With asynchronous dispatch, a single CPU device allocates the buffers of the next step while
  # it still holds those of this one; several devices wait for one another.
  jax.config.update("jax_cpu_enable_async_dispatch", count > 1)
  use_compilation_cache()
  # The cache identifies oneDNN's convolutions by metadata, see `nn.onednn`. With the address of
  # the partitioning function in the key, other processes would not find them.
  jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def use_compilation_cache() -> None:
  """Keeps compiled programs in the user's cache folder, at most 2 GB, for later processes.

  JAX_COMPILATION_CACHE_DIR sets another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it
  off. Each kind of CPU has its own folder: machines may share a home directory.
  """
  options: Any = jax.config
  if options.jax_compilation_cache_dir:
    return
  home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  machine = hashlib.blake2b(" ".join(sorted(cpu_flags())).encode(), digest_size=4).hexdigest()
  jax.config.update("jax_compilation_cache_dir", str(home / "okdph_jax" / f"xla-{machine}"))
  jax.config.update("jax_compilation_cache_max_size", 2 * 2**30)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def cores() -> int:
  """The number of cores that this process may use."""
  return (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  )


@functools.cache
def cpu_flags() -> frozenset[str]:
  """The CPU's flags in /proc/cpuinfo; empty on systems without it."""
  try:
    with open("/proc/cpuinfo") as file:
      lines = (line.split(":", 1) for line in file if line.startswith("flags"))
      return frozenset(next(lines, ("", ""))[1].split())
  except OSError:
    return frozenset()


def has_bfloat16() -> bool:
  """Whether this CPU has instructions for bfloat16 products."""
  return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def compiler_options(platform: str | None = None) -> dict[str, Any]:
  """For `jax.jit`: on a CPU, keeps the optimization barriers of convolutions and views.

  platform: to compile for; by default JAX's default backend.
  """
  if (platform or jax.default_backend()) != "cpu":
    return {}
  return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def fast_compile_options() -> dict[str, Any]:
  """For `jax.jit` of functions that run once, such as the initialisation: no optimisation."""
  return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def mesh(devices: int | None = None, groups: int = 1) -> Mesh:
  """A mesh of all devices, or the first `devices` of each process, with the axis "data".

  With several `groups`, each of which holds a part of the students, it has the axes "students"
  and "data".
  """
  if devices is not None and not 1 <= devices <= jax.local_device_count():
    raise ValueError(
      f"devices={devices}, but there are only {jax.local_device_count()} "
      f"({jax.default_backend()})"
    )
  chosen = [
    device
    for process in range(jax.process_count())
    for device in jax.local_devices(process)[:devices]
  ]
  if groups == 1:
    return Mesh(chosen, ("data",), axis_types=(AxisType.Auto,))
  if jax.process_count() > 1:
    raise ValueError("config.student_groups must be 1 in a pod of several processes")
  if len(chosen) % groups:
    raise ValueError(
      f"config.student_groups={groups} does not divide {len(chosen)} devices; "
      "set config.devices"
    )
  grid = np.reshape(np.array(chosen), (groups, -1))
  return Mesh(grid, ("students", "data"), axis_types=(AxisType.Auto,) * 2)


def layout(shapes: Callable[[], PyTree], mesh: Mesh) -> Any:
  """Shardings of a state: leaves under "students" split over the groups, others replicated."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  if "students" not in mesh.axis_names:
    return everywhere
  own = NamedSharding(mesh, PartitionSpec("students"))

  def place(path, leaf):
    stacked = any(getattr(entry, "key", None) == "students" for entry in path)
    return own if stacked and leaf.ndim else everywhere

  return jax.tree_util.tree_map_with_path(place, shapes())


def place(tree: PyTree, sharding: Sharding) -> PyTree:
  """Host arrays as global arrays with this sharding.

  In a pod all processes must pass equal arrays; each sends only the parts of its own devices.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part]), tree
  )


@contextlib.contextmanager
def silent() -> Iterator[None]:
  """Discards stderr: on import TensorFlow's libraries print before any log level applies."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def hide_accelerators(tensorflow: Any) -> None:
  """Hides the accelerators from TensorFlow, which would reserve their memory."""
  for kind in ("GPU", "TPU"):
    tensorflow.config.set_visible_devices([], kind)
