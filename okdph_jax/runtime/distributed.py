"""A pod: several processes, on one or more machines, that train one run on all their devices.

All of them run the same program on the same batches. Process 0, the leader, writes files and
prints. Decisions that depend on a clock or a signal are shared, so that all processes take the
same steps. A single process is its own leader.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def join() -> None:
  """Connects this process to the others of its pod; call it before any computation.

  JAX finds them on TPU pods and under Slurm and Open MPI; elsewhere set JAX_COORDINATOR_ADDRESS
  (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Raises ValueError, in one
  line, if there are no others.
  """

  def asked(name):
    number = os.environ.get(name)
    return None if number is None else int(number)

  jax.config.update("jax_enable_preemption_service", False)  # signals are the loop's
  try:
    jax.distributed.initialize(
      num_processes=asked("JAX_NUM_PROCESSES"), process_id=asked("JAX_PROCESS_ID")
    )
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      f"--pod finds no other processes ({error}); start it by srun or mpirun, on every host of "
      "a TPU pod, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
    ) from error


def exit_without_barrier(code: int) -> None:
  """Ends a failed process of a pod at once: at exit JAX would wait minutes for the others."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_leader() -> bool:
  """Whether this process writes files and prints: process 0 of a pod, or the only one."""
  return jax.process_index() == 0


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
  """Runs the block in the leader first, and then in the other processes of the pod."""
  if not is_leader():
    multihost_utils.sync_global_devices("leader first")
  yield
  if is_leader():
    multihost_utils.sync_global_devices("leader first")


def only_leader_prints() -> AbstractContextManager[Any]:
  """A context in which only the leader prints."""
  return contextlib.nullcontext() if is_leader() else contextlib.redirect_stdout(None)


def broadcast_from_leader(number: int) -> int:
  """The leader's `number` (an integer or a bool), in all processes of the pod."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def any_process(flag: bool) -> bool:
  """Whether `flag` is True in any process of the pod; all of them must call it."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.bool_(flag)).any())
