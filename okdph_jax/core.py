"""The types every part of the package shares.

Letters for axes: `N` students (or branches), `V` views, `B` batch, `H W C`
image, `h w F` feature map, `K` classes.
"""

from typing import Any, NamedTuple

from flax import struct
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree, UInt8

Variables = dict[str, Any]  # of a Linen module: {"params": tree, "batch_stats": tree}
Number = float | Float[Array, ""]  # an option: traced inside the compiled step, see `is_traced`


def is_traced(option: Any) -> bool:
  """Whether the value of an option is an argument of the program that is being traced.

  The training step is traced with its rates and weights as arguments, so that others do not
  compile it again. Their values were checked before; 0 and 1 are never traced, so that code
  may test for them.
  """
  return isinstance(option, Tracer)


class Batch(NamedTuple):
  """Examples as they are in the data set; the image has V where the source crops per view."""

  image: UInt8[Array, "*V B H W C"]
  label: Int[Array, " B"]


class Views(NamedTuple):
  """A batch as the networks see it: one augmentation per network, normalised."""

  image: Float[Array, "V B H W C"]
  label: Int[Array, " B"]


class Outputs(NamedTuple):
  """What a branch returns."""

  logits: Float[Array, "B K"]
  feature: Float[Array, "B F"]  # pooled, before the classifier
  map: Float[Array, "B h w F"]  # the last feature map


class Terms(NamedTuple):
  """The two halves of every objective here, each summed over the students."""

  task: Float[Array, ""] | float  # how well the labels are fitted
  distill: Float[Array, ""] | float  # how well the students agree with what teaches them


class Learner(struct.PyTreeNode):
  """Everything a method trains or remembers.

  `params` and `stats` have the keys "students" (stacked, [N, ...] per leaf) and
  "shared" ({name: tree}); `stats` are running batch statistics.
  """

  params: dict[str, PyTree]
  stats: dict[str, PyTree]
  memory: dict[str, PyTree]  # what the method carries from step to step; no gradient moves it

  @property
  def students(self) -> Variables:
    """The stack as Linen variables, {"params": ..., "batch_stats": ...}."""
    return self.variables("students")

  def variables(self, *path: str) -> Variables:
    """The Linen variables of one part, e.g. `variables("shared", "stem")`."""
    params, stats = self.params, self.stats
    for name in path:
      params, stats = params[name], stats.get(name, {})
    return {"params": params, "batch_stats": stats}

  def with_students(self, variables: Variables) -> "Learner":
    """This learner with another stack of students."""
    return self.replace(
      params=self.params | {"students": variables["params"]},
      stats=self.stats | {"students": variables["batch_stats"]},
    )

  def with_stats(self, **stats: PyTree) -> "Learner":
    """This learner with new batch statistics of its "students" or of what is "shared"."""
    return self.replace(stats=self.stats | stats)

  def with_memory(self, **memory: PyTree) -> "Learner":
    """This learner with new values under these names of its memory."""
    return self.replace(memory=self.memory | memory)

  def with_memory_of(self, wrapper: str, value: PyTree) -> "Learner":
    """This learner with `value` as the memory of a wrapper; ValueError if it has one."""
    if wrapper in self.memory:
      raise ValueError(f"{wrapper} is already around this method; name it once in wrappers")
    return self.with_memory(**{wrapper: value})
