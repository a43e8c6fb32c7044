"""A fraction of the training set, the paper's Table 3.

    python -m okdph_jax.main --config=configs/limited.py:okdph,resnet32,cifar10,0.01 --workdir=DIR

The argument is METHOD,NETWORK,DATASET,FRACTION, okdph,resnet32,cifar10,0.01 by default. The
subset is the release's: drawn per class with replacement. Expected on cifar10 (paper, best over
300 epochs and all readers): resnet32 81.95 % at 0.1, 44.14 % at 0.01.
"""

from configs import paper


def get_config(argument=""):
  options = paper.split(argument, "method", "network", "dataset", "fraction")
  fraction = float(options.pop("fraction", 0.01))
  dataset = options.pop("dataset", "cifar10")
  config = paper.recipe(dataset, **options, setting=fraction)
  config.data.fraction = fraction
  config.data.replacement = True
  return config
