"""How a training step runs its networks: dtypes, batch normalisation, groups of devices."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Execution(NamedTuple):
  """Options of `nn.students` and `nn.batch_norm`; with the defaults Flax's behaviour."""

  # "bfloat16": the type of inputs and outputs of convolutions and dense layers; "products":
  # only the operands of products in convolutions are rounded to bfloat16.
  compute: str = "float32"
  moments_over: int | None = None  # images per group in batch normalisation; None: the batch
  mesh: Mesh | None = None  # with an axis "students", over which stacks are split

  @property
  def dtype(self) -> Any:
    """The dtype of layers that specify none; None for that of their inputs and parameters."""
    return jnp.dtype(jnp.bfloat16) if self.compute == "bfloat16" else None

  def groups(self, images: int) -> int:
    """The number of groups of a batch that are normalised separately."""
    size = self.moments_over
    return images // size if size and images % size == 0 else 1

  def spread(self, x: Any) -> Any:
    """The batch [B, ...] of a single network, split over all devices."""
    if self.mesh is None:
      return x
    devices = self.mesh.size
    sharding = NamedSharding(self.mesh, PartitionSpec(("data", "students")))

    def one(leaf):
      fits = leaf.shape[0] % devices == 0
      return jax.lax.with_sharding_constraint(leaf, sharding) if fits else leaf

    return jax.tree.map(one, x)

  def split(self, function: Any, stacked: int) -> Any:
    """`function` of stacks of `stacked` networks, split over the groups of devices."""
    if self.mesh is None or stacked % self.mesh.shape["students"]:
      return function
    return self._on_groups(function, PartitionSpec("students"))

  def sum(self, function: Any, stacked: int) -> Any:
    """`function`, a sum over `stacked` networks, in each group of devices and then over all."""
    if self.mesh is None or stacked % self.mesh.shape["students"]:
      return function

    def total(*stacks):
      return jax.lax.psum(function(*stacks), "students")

    return self._on_groups(total, PartitionSpec())

  def _on_groups(self, function, result):
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=PartitionSpec("students"),
      out_specs=result,
      axis_names={"students"},
      check_vma=False,
    )


AS_IT_IS = Execution()
_CURRENT = contextvars.ContextVar("execution", default=AS_IT_IS)


@contextlib.contextmanager
def executed(execution: Execution) -> Iterator[None]:
  """A context in which networks are traced with this `Execution`."""
  token = _CURRENT.set(execution)
  try:
    yield
  finally:
    _CURRENT.reset(token)


def current() -> Execution:
  """The `Execution` of the innermost `executed`."""
  return _CURRENT.get()
