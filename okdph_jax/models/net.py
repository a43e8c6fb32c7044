"""A network as the methods see it: a shared stem and the branch that is replicated."""

from flax import linen as nn
from jaxtyping import Array, Float


class Net(nn.Module):
  """Every network of this package: image [B, H, W, C] -> logits [B, K].

  Whole-network methods stack the `Net`; ONE, OKDDip, FFL and PCL stack the `branch` and
  share the `stem`. Both are modules of their own: `net.stem.init(key, x, False)`.
  """

  stem: nn.Module  # (x [B, H, W, C], train) -> map [B, h, w, c]
  branch: nn.Module  # (map, train) -> `core.Outputs`
  about: str  # the exact variant, in one line

  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B K"]:
    return self.branch(self.stem(x, train), train).logits
