"""CIFAR-100, the paper's Table 1.

    python -m okdph_jax.main --config=configs/cifar100.py --workdir=DIR
    python -m okdph_jax.main --config=configs/cifar100.py:okdph,wrn20_8 --workdir=DIR

The argument is METHOD,NETWORK,STUDENTS, okdph,resnet32,2 by default, as of `cifar10.py`, where
fair comparisons are explained too; here the plain view is `hflip+rot`. Expected, two students
(paper, best of 300 epochs and of students and hybrid, five runs): resnet32 74.10, resnet110
79.68, vgg16 75.56, densenet40_12 72.30, wrn20_8 78.88 %.
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(method="okdph", network="resnet32", students=None)


def get_config(argument=""):
  return paper.recipe("cifar100", **paper.split(argument, **ARGUMENT))
