"""How a training step runs its networks, whatever they are: number formats, batch moments."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Execution(NamedTuple):
  """What `nn.students` and `nn.batch_norm` do differently; by default nothing."""

  # "bfloat16": what convolutions and dense layers take and give; "products": what convolutions
  # multiply, and nothing else.
  compute: str = "float32"
  moments_over: int | None = None  # images that batch normalisation normalises together
  mesh: Mesh | None = None  # with an axis "students", over which a stack is split

  @property
  def dtype(self) -> Any:
    """Of layers that leave it open; None where inputs and parameters decide."""
    return jnp.dtype(jnp.bfloat16) if self.compute == "bfloat16" else None

  def groups(self, images: int) -> int:
    """How many groups of a batch are normalised by moments of their own."""
    size = self.moments_over
    return images // size if size and images % size == 0 else 1

  def spread(self, x: Any) -> Any:
    """A batch [B, ...] that one network sees, split over all devices."""
    if self.mesh is None:
      return x
    devices, rows = (
      self.mesh.size,
      NamedSharding(self.mesh, PartitionSpec(("data", "students"))),
    )

    def one(leaf):
      fits = leaf.shape[0] % devices == 0
      return jax.lax.with_sharding_constraint(leaf, rows) if fits else leaf

    return jax.tree.map(one, x)

  def split(self, function: Any, stacked: int) -> Any:
    """`function` of stacks of so many networks, each part of which its own devices compute."""
    if self.mesh is None or stacked % self.mesh.shape["students"]:
      return function
    return self._on_groups(function, PartitionSpec("students"))

  def sum(self, function: Any, stacked: int) -> Any:
    """`function` of stacks of so many networks, which adds them up, group by group."""
    if self.mesh is None or stacked % self.mesh.shape["students"]:
      return function
    total = lambda *stacks: jax.lax.psum(function(*stacks), "students")  # noqa: E731
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
  """Networks that are traced within the block run so."""
  token = _CURRENT.set(execution)
  try:
    yield
  finally:
    _CURRENT.reset(token)


def current() -> Execution:
  return _CURRENT.get()
