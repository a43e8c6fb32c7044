"""CIFAR with the methods as the authors' release computes them, to reproduce published cells.

    python -m okdph_jax.main --config=configs/release.py:okdph,vgg16,cifar100 --workdir=DIR

The argument is METHOD,NETWORK,DATASET, okdph,resnet32,cifar10 by default. OKDPH has four
switches against the paper's Algorithm 1: the hybrid's loss does not reach the students, the
hybrid is the plain mean, students are fused with the hybrid that the step's forward pass used,
and the interval counts within the epoch, from its first batch. Methods that are not listed are
the same in both. What the release gets wrong beyond a switch (FFL's thin WRN20-8, DenseNet's
shared branches, PCL's ramp) is not reproduced. Its noise is `configs/noisy.py`'s `both`.
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(method="okdph", network="resnet32", dataset=paper.CIFAR)


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  options |= paper.RELEASE.get(options["method"], {})
  if (options["method"], options["network"]) == ("pcl", "densenet40_12"):
    options["students"] = 3
  config = paper.recipe(**options)
  if options["method"] == "sam":
    config.wrappers = (paper.release_wrapper("sam", options["dataset"]),)
  return config
