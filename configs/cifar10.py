"""CIFAR-10, the paper's Table 1.

    python -m okdph_jax.main --config=configs/cifar10.py --workdir=DIR
    python -m okdph_jax.main --config=configs/cifar10.py:okdph,vgg16,3 --workdir=DIR

The argument is METHOD,NETWORK,STUDENTS, okdph,resnet32,2 by default. Expected, two students
(paper, best over 300 epochs and all readers, five runs): resnet32 95.01, resnet110 96.28,
vgg16 95.32, densenet40_12 94.34, wrn20_8 95.95 %.
"""

from configs import paper


def get_config(argument=""):
  options = paper.split(argument, "method", "network", "students")
  if "students" in options:
    options["students"] = int(options["students"])
  return paper.recipe("cifar10", **options)
