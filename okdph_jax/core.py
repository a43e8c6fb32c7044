"""The nouns every floor shares.

Letters for axes: `N` students (or branches), `V` views, `B` batch, `H W C`
image, `h w F` feature map, `K` classes.
"""

from typing import Any, NamedTuple

import jax
from flax import struct

Array = jax.Array
PyTree = Any


class Batch(NamedTuple):
  """Examples as they lie in the data set."""

  image: Array  # uint8 [B, H, W, C], or [V, B, H, W, C] where the source crops per view
  label: Array  # int32 [B]


class Views(NamedTuple):
  """A batch as the networks see it: one augmentation per network."""

  image: Array  # float32 [V, B, H, W, C], normalised
  label: Array  # int32 [B]


class Outputs(NamedTuple):
  """What a branch returns."""

  logits: Array  # [B, K]
  feature: Array  # [B, F], pooled, before the classifier
  map: Array  # [B, h, w, F], the last feature map


class Terms(NamedTuple):
  """The two halves of every objective here, each summed over the students."""

  task: Array  # how well the labels are fitted
  distill: Array  # how well the students agree with what teaches them


class Learner(struct.PyTreeNode):
  """Everything a method trains or remembers.

  `params` and `stats` have the keys "students" (stacked, [N, ...] per leaf) and
  "shared" ({name: tree}); `stats` are running batch statistics.
  """

  params: dict
  stats: dict
  memory: PyTree  # what the method carries from step to step and descent leaves alone

  @property
  def students(self):
    """The stack as Linen variables, {"params": ..., "batch_stats": ...}."""
    return self.variables("students")

  def variables(self, *path):
    """The Linen variables of one part, e.g. `variables("shared", "stem")`."""
    params, stats = self.params, self.stats
    for name in path:
      params, stats = params[name], stats.get(name, {})
    return {"params": params, "batch_stats": stats}
