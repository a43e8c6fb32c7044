"""CIFAR-10, the paper's Table 1.

    python -m okdph_jax.main --config=configs/cifar10.py --workdir=DIR
    python -m okdph_jax.main --config=configs/cifar10.py:okdph,vgg16,3 --workdir=DIR

The argument is METHOD,NETWORK,STUDENTS, okdph,resnet32,2 by default. METHOD is any method, or
`sam`, `asam`, `swa`, `ema` for that wrapper around `base`. Its options are those of its own
paper; `configs/release.py` has those of OKDPH's release. Expected, two students (paper, best
of 300 epochs and of students and hybrid, five runs): resnet32 95.01, resnet110 96.28, vgg16
95.32, densenet40_12 94.34, wrn20_8 95.95 %.

For a fair comparison give every method OKDPH's views: base with three students is the control
of equal cost, and a method with fewer networks draws one of the views per image and network.
A single view is for all networks.

    --config=configs/cifar10.py:base,resnet32,3 --config.views="('hflip','cutout','augment')"
    --config=configs/cifar10.py:one,resnet32 --config.views="('any(hflip,cutout,augment)',)"
    --config=configs/cifar10.py:dml,resnet32 --config.views="('any(hflip,cutout,augment)',)"

Wrappers go around any method, the first innermost:

    --config=configs/cifar10.py:okdph,resnet32
      --config.wrappers="({'name':'sam','rho':0.05},{'name':'swa'})"
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(method="okdph", network="resnet32", students=None)


def get_config(argument=""):
  return paper.recipe("cifar10", **paper.split(argument, **ARGUMENT))
