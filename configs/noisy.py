"""Gaussian noise on the images, the paper's Equation 9 and Table 3.

    python -m okdph_jax.main --config=configs/noisy.py:okdph,vgg16,cifar10,both --workdir=DIR

The argument is METHOD,NETWORK,DATASET,NOISE, okdph,resnet32,cifar10,train by default. N(0, 1)
is added after the normalisation, a fresh draw for each view. NOISE is `train`, on the training
images only, as the paper says, or `both`, on the test images too, as its release does; which of
the two gave Table 3 is not known. Expected on cifar10 (paper, best of 300 epochs and of
students and hybrid): resnet32 84.27, vgg16 84.93, densenet40_12 81.67 %.
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(
  method="okdph", network="resnet32", dataset=paper.CIFAR, noise=("train", "both")
)


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  noise = options.pop("noise")
  config = paper.recipe(setting="noisy", **options)
  config.views = tuple(f"{view}|noise" for view in config.views)
  if noise == "both":
    config.test_view = "plain|noise"
  return config
