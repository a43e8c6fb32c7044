"""N trained networks as one network: the ensemble of a run, used as a teacher."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from okdph_jax.core import Variables


class Ensemble(nn.Module):
  """The mean of the logits of `size` networks, whose variables are stacked: [size, ...]."""

  net: nn.Module
  size: int

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B K"]:
    run = nn.vmap(
      lambda net, x: net(x, train),
      in_axes=None,  # pyright: ignore[reportArgumentType]
      axis_size=self.size,
      variable_axes={"params": 0, "batch_stats": 0},
      split_rngs={"params": True, "dropout": True},
    )
    return run(self.net, x).mean(0)


def together(net: nn.Module, networks: Sequence[Variables]) -> tuple[Ensemble, Variables]:
  """(an `Ensemble` of copies of `net` with these variables, its variables)."""
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
  variables = {kind: {"net": tree} if tree else {} for kind, tree in stacked.items()}
  return Ensemble(net, len(networks)), variables
