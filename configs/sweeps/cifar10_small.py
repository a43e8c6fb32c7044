"""500 images of CIFAR-10 with ResNet8: OKDPH in both modes against its controls.

    okdph sweep cifar10_small --root=runs/cifar10_small

The images are the release's 1 % (the paper's Table 3), the training its recipe; ResNet8 and
100 epochs in place of 300 are ours, so that a run takes a minute or two on two cores. OKDPH has
the paper's most frequent hyper-parameters, because it gives none for this network. `base3` has
OKDPH's views and its cost, `dml` draws one of these views for each image and network. Snapshots
are for `okdph analysis`.
"""

from okdph_jax.experiment import paper

SEEDS = 3
COMMON = {"epochs": 100, "eval_every_epochs": 20, "snapshots": 10}
VIEWS = paper.okdph_views("cifar10", 2)


def get_sweep():
  entries = {
    "okdph": {"config": "limited:okdph,resnet8"},
    "okdph-release": {"config": "limited:okdph,resnet8"} | paper.released("okdph"),
    "base1-hflip": {"config": "limited:base,resnet8", "method.students": 1, "views": VIEWS[:1]},
    "base3": {"config": "limited:base,resnet8", "method.students": 3, "views": VIEWS},
    "dml": {"config": "limited:dml,resnet8", "views": (f"any({', '.join(VIEWS)})",)},
  }
  return {name: options | COMMON for name, options in entries.items()}
