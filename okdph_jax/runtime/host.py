"""The machine: how many devices, how its memory is mapped, and what the compiler is told.

Called before anything touches a device.
"""

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


def configure(devices: int | None = None, batch: int | None = None) -> None:
  """Prepares this process: a CPU becomes `devices` host devices.

  devices: how many, in each process of a pod; by default one per visible core, at most 4,
  and such that they divide `batch`, the images per step. On an accelerator, how many of it
  to use is up to `mesh`. Call it first: a backend that runs keeps its count.
  """
  if devices is not None and devices < 1:
    raise ValueError(f"devices={devices}: at least 1 is needed; leave it out for one per core")
  if devices and batch and batch % devices:
    raise ValueError(
      f"devices={devices} does not divide batch_size={batch}; choose a number that does"
    )
  count = devices or next(n for n in range(min(cores(), 4), 0, -1) if (batch or n) % n == 0)
  with contextlib.suppress(RuntimeError):  # a backend runs, as in a notebook
    jax.config.update("jax_num_cpu_devices", count)
  use_compilation_cache()
  # oneDNN's convolutions tell the compilation cache what they are (see `nn.onednn`); with the
  # address of the function that splits them in the key, no other process would find them.
  jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def use_compilation_cache() -> None:
  """Keeps compiled programs for the next process, in the user's cache folder, at most 2 GB.

  JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it
  off. A program for the CPU has this machine's instructions in it: homes are shared by others.
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
  """How many cores this process may use."""
  return (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  )


@functools.cache
def cpu_flags() -> frozenset[str]:
  """The instruction sets of this CPU as Linux names them; empty where it does not say."""
  try:
    with open("/proc/cpuinfo") as file:
      lines = (line.split(":", 1) for line in file if line.startswith("flags"))
      return frozenset(next(lines, ("", ""))[1].split())
  except OSError:
    return frozenset()


def has_bfloat16() -> bool:
  """Whether this CPU multiplies bfloat16 numbers."""
  return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def compiler_options(platform: str | None = None) -> dict[str, Any]:
  """For `jax.jit`: on a CPU, keeps the barriers that convolutions and views have.

  platform: what is compiled for; by default where JAX computes.
  """
  if (platform or jax.default_backend()) != "cpu":
    return {}
  return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def fast_compile_options() -> dict[str, Any]:
  """For `jax.jit` of what runs once: initialising takes longer to compile than to run."""
  return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def mesh(devices: int | None = None, groups: int = 1) -> Mesh:
  """All devices, or the first `devices` of each process, along the axis "data".

  Several `groups`, each of which holds its own students, stand along the axis "students".
  """
  if devices is not None and not 1 <= devices <= jax.local_device_count():
    raise ValueError(
      f"devices={devices}, but there are {jax.local_device_count()} "
      f"({jax.default_backend()}); ask for at most that many"
    )
  chosen = [
    device
    for process in range(jax.process_count())
    for device in jax.local_devices(process)[:devices]
  ]
  if groups == 1:
    return Mesh(chosen, ("data",), axis_types=(AxisType.Auto,))
  if jax.process_count() > 1:
    raise ValueError("config.student_groups is for one process; in a pod leave it at 1")
  if len(chosen) % groups:
    raise ValueError(
      f"config.student_groups={groups} does not divide {len(chosen)} devices; "
      "set config.devices"
    )
  grid = np.reshape(np.array(chosen), (groups, -1))
  return Mesh(grid, ("students", "data"), axis_types=(AxisType.Auto,) * 2)


def layout(shapes: Callable[[], PyTree], mesh: Mesh) -> Any:
  """Where a state of these shapes lies: on all devices, but students on their group."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  if "students" not in mesh.axis_names:
    return everywhere
  own = NamedSharding(mesh, PartitionSpec("students"))

  def place(path, leaf):
    stacked = any(getattr(entry, "key", None) == "students" for entry in path)
    return own if stacked and leaf.ndim else everywhere

  return jax.tree_util.tree_map_with_path(place, shapes())


def place(tree: PyTree, sharding: Sharding) -> PyTree:
  """Arrays of this host, equal on all that hold the same part of them, on the devices.

  Of an array that is split, each process of a pod sends its own devices' part alone.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part]), tree
  )


@contextlib.contextmanager
def silent() -> Iterator[None]:
  """Nothing on stderr: TensorFlow's libraries greet on import, before any log level counts."""
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
  """Leaves the accelerators to JAX: TensorFlow would take their memory when it starts."""
  for kind in ("GPU", "TPU"):
    tensorflow.config.set_visible_devices([], kind)
