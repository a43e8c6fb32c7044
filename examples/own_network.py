"""Your own network, in Flax Linen or Flax NNX.

A config names a network by its dotted path, `package.module:Name`. So does this script, whose
module is `own_network`; in your project that is `my_project.nets`.

    python examples/own_network.py

trains two of each with OKDPH on the digits and loads one back. From the command line:

    PYTHONPATH=examples okdph train --config=digits --config.network=own_network:SmallLinen

Batch normalisation must depend on `train`. Flax's default momentum of 0.99 averages over
hundreds of steps: use 0.9, as PyTorch does, on small data.
"""

from flax import linen as nn
from flax import nnx

import okdph_jax

EPOCHS = 20


class SmallLinen(nn.Module):
  """x float32 [B, H, W, C] -> logits [B, classes]."""

  classes: int  # given by the data; other fields need defaults
  width: int = 32

  @nn.compact
  def __call__(self, x, train):
    for i in range(2):
      x = nn.Conv(self.width * 2**i, (3, 3), use_bias=False)(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(self.classes)(x.mean((1, 2)))


class SmallNnx(nnx.Module):
  """Of NNX: made as SmallNnx(classes=K, rngs=rngs), and bridged to Linen."""

  def __init__(self, classes, *, channels=1, width=32, rngs):
    self.conv1 = nnx.Conv(channels, width, (3, 3), use_bias=False, rngs=rngs)
    self.norm1 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
    self.conv2 = nnx.Conv(width, 2 * width, (3, 3), use_bias=False, rngs=rngs)
    self.norm2 = nnx.BatchNorm(2 * width, momentum=0.9, rngs=rngs)
    self.dense = nnx.Linear(2 * width, classes, rngs=rngs)

  def __call__(self, x, train):
    x = nnx.relu(self.norm1(self.conv1(x), use_running_average=not train))
    x = nnx.max_pool(x, (2, 2), (2, 2))
    x = nnx.relu(self.norm2(self.conv2(x), use_running_average=not train))
    return self.dense(x.mean((1, 2)))


if __name__ == "__main__":
  for name in ("own_network:SmallLinen", "own_network:SmallNnx"):
    config = okdph_jax.load_config("digits", [("epochs", str(EPOCHS)), ("network", name)])
    result = okdph_jax.fit(config, f"runs/{name.partition(':')[2]}")
    print(name, result.best_single)

    # A run's files never make this package import code: you name the network again.
    network = okdph_jax.load(result.run.path, network=name)
    print(network)
