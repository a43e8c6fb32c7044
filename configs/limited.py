"""A fraction of the training set, the paper's Table 3.

    python -m okdph_jax.main --config=configs/limited.py:okdph,vgg16,cifar100,0.1 --workdir=DIR

The argument is METHOD,NETWORK,DATASET,FRACTION, okdph,resnet32,cifar10,0.01 by default. The
subset is the release's: drawn per class with replacement. `--config.data.seed=1` draws other
images: the replicates of a comparison, in which all methods see the images of a draw. Expected
on cifar10 (paper, best of 300 epochs and of students and hybrid): resnet32 81.95 % at 0.1,
44.14 % at 0.01.
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(method="okdph", network="resnet32", dataset=paper.CIFAR, fraction=0.01)


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  fraction = options.pop("fraction")
  config = paper.recipe(setting=fraction if fraction != 1 else None, **options)
  config.data.fraction = fraction
  config.data.replacement = True
  return config
