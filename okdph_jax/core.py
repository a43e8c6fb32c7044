"""Types shared by all packages.

Axis letters: `N` students (or branches), `V` views, `B` batch, `H W C` image, `h w F` feature
map, `K` classes.
"""

from typing import Any, NamedTuple

from flax import struct
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree, UInt8

Variables = dict[str, Any]  # of a Linen module: {"params": tree, "batch_stats": tree}
Number = float | Float[Array, ""]  # an option's value; a tracer in the jitted step


def is_traced(option: Any) -> bool:
  """Whether an option's value is a tracer: an argument of the jitted training step.

  The step takes its float options as arguments, so that other values do not recompile it. They
  are checked before tracing. 0 and 1 stay Python numbers, so Python's `if` may test for them.
  """
  return isinstance(option, Tracer)


class Batch(NamedTuple):
  """Images and labels as stored. Streamed images have the axis V: one random crop per view."""

  image: UInt8[Array, "*V B H W C"]
  label: Int[Array, " B"]


class Views(NamedTuple):
  """A batch as the networks see it: normalised, one augmentation per network."""

  image: Float[Array, "V B H W C"]
  label: Int[Array, " B"]


class Outputs(NamedTuple):
  """The output of a branch."""

  logits: Float[Array, "B K"]
  feature: Float[Array, "B F"]  # pooled, before the classifier
  map: Float[Array, "B h w F"]  # the last feature map


class Terms(NamedTuple):
  """The two terms of a method's objective, each summed over the students."""

  task: Float[Array, ""] | float  # the losses on the labels
  distill: Float[Array, ""] | float  # the losses on the teachers' predictions


class Learner(struct.PyTreeNode):
  """Everything that a method trains or carries from step to step.

  `params` and `stats` (running batch statistics) have the keys "students" (stacked, [N, ...]
  per leaf) and "shared" ({name: tree}).
  """

  params: dict[str, PyTree]
  stats: dict[str, PyTree]
  memory: dict[str, PyTree]  # not trained: averages, teachers, OKDPH's weights r

  @property
  def students(self) -> Variables:
    """The stacked students as Linen variables, {"params": ..., "batch_stats": ...}."""
    return self.variables("students")

  def variables(self, *path: str) -> Variables:
    """The Linen variables of one part, e.g. `variables("shared", "stem")`."""
    params, stats = self.params, self.stats
    for name in path:
      params, stats = params[name], stats.get(name, {})
    return {"params": params, "batch_stats": stats}

  def with_students(self, variables: Variables) -> "Learner":
    """A copy with these stacked students."""
    return self.replace(
      params=self.params | {"students": variables["params"]},
      stats=self.stats | {"students": variables["batch_stats"]},
    )

  def with_stats(self, **stats: PyTree) -> "Learner":
    """A copy with new batch statistics under "students" or "shared"."""
    return self.replace(stats=self.stats | stats)

  def with_memory(self, **memory: PyTree) -> "Learner":
    """A copy with these entries of `memory` replaced or added."""
    return self.replace(memory=self.memory | memory)

  def with_memory_of(self, wrapper: str, value: PyTree) -> "Learner":
    """A copy with a wrapper's entry added to `memory`; ValueError if there is one already."""
    if wrapper in self.memory:
      raise ValueError(f"config.wrappers has {wrapper} twice; name it once")
    return self.with_memory(**{wrapper: value})
