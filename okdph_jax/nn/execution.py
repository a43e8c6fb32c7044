"""How a training step runs its networks, whatever they are: number formats, batch moments."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp


class Execution(NamedTuple):
  """What `nn.students` and `nn.batch_norm` do differently; by default nothing."""

  compute: str = "float32"  # or "bfloat16", of convolutions, dense layers and what they return
  moments_over: int | None = None  # images that batch normalisation normalises together

  @property
  def dtype(self) -> Any:
    """Of layers that leave it open; None where inputs and parameters decide."""
    return None if self.compute == "float32" else jnp.dtype(self.compute)

  def groups(self, images: int) -> int:
    """How many groups of a batch are normalised by moments of their own."""
    size = self.moments_over
    return images // size if size and images % size == 0 else 1


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
