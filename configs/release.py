"""CIFAR-10 with OKDPH as the authors' release computes it.

    python -m okdph_jax.main --config=configs/release.py:resnet32 --workdir=DIR

The argument is NETWORK. Five switches against the paper's Algorithm 1: the hybrid's loss does
not reach the students, the hybrid is the plain mean, students are fused with the hybrid that
the step's forward pass used, and the interval counts within the epoch, from its first batch.
(The fifth, `same_init`, is the same in both.)
"""

from configs import paper


def get_config(argument=""):
  config = paper.recipe("cifar10", "okdph", **paper.split(argument, "network"))
  config.method.hybrid_gradient = False
  config.method.weights = "uniform"
  config.method.fuse_with = "previous"
  config.method.fuse_clock = "epoch"
  config.method.same_init = True
  return config
