"""A network as the methods use it: a stem, which branches can share, and a branch."""

from flax import linen as nn
from jaxtyping import Array, Float


class Net(nn.Module):
  """The type of all networks here: image [B, H, W, C] -> logits [B, K].

  Methods of whole networks stack the `Net`; ONE, OKDDip, FFL and PCL stack the `branch` and
  share the `stem`. Both can be used alone: `net.stem.init(key, x, False)`.
  """

  stem: nn.Module  # (x [B, H, W, C], train) -> map [B, h, w, c]
  branch: nn.Module  # (map, train) -> `core.Outputs`
  about: str  # the exact variant, in one line

  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B K"]:
    return self.branch(self.stem(x, train), train).logits
