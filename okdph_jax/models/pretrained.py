"""Fine-tuning: a network that is initialised with trained variables."""

from typing import Any

import jax
from flax import linen as nn
from jaxtyping import PyTree

from okdph_jax.core import Variables


class Pretrained:
  """`net`, initialised with every leaf of `variables` that has the same path and shape.

  The other leaves, such as a classifier for another number of classes, are initialised at
  random. Methods use it in place of `net`; it differs in its initialisation only.
  """

  def __init__(self, net: nn.Module, variables: Variables):
    self._net: Any = net  # its stem and branch, if it has them
    self._variables = variables

  def __getattr__(self, name: str) -> Any:
    return getattr(self._net, name)

  def lazy_init(self, *args: Any, **kwargs: Any) -> PyTree:
    return self._merged(self._net.lazy_init(*args, **kwargs))[0]

  def own_start(self, image: jax.ShapeDtypeStruct) -> list[str]:
    """Paths of the parameters that are initialised at random, "branch/Dense_0/kernel".

    image: shape and dtype of a batch [B, H, W, C].
    """
    key = jax.random.key(0)
    fresh = jax.eval_shape(
      lambda: self._net.lazy_init({"params": key, "dropout": key}, image, False)
    )
    return self._merged(fresh)[1]

  @property
  def stem(self) -> "Pretrained":
    return self._part("stem")

  @property
  def branch(self) -> "Pretrained":
    return self._part("branch")

  def _part(self, name):
    variables = {kind: tree.get(name, {}) for kind, tree in self._variables.items()}
    return Pretrained(getattr(self._net, name), variables)

  def _merged(self, fresh):
    trained = dict(jax.tree_util.tree_leaves_with_path(self._variables))
    kept = []

    def choose(path, leaf):
      value = trained.get(path)
      if value is not None and value.shape == leaf.shape:
        return value.astype(leaf.dtype)
      if path[0].key == "params":
        kept.append("/".join(str(key.key) for key in path[1:]))
      return leaf

    return jax.tree_util.tree_map_with_path(choose, dict(fresh)), kept
