"""500 images of CIFAR-10 with ResNet8: every method, paired over five draws of the images.

    okdph sweep cifar10_small --root=runs/cifar10_small

The setting is that of the 1 % column of the paper's Table 3 with ResNet8 in place of ResNet32
(ours: a run takes minutes on two cores). Run k has seed k and draws its images with
`data.seed` k: which images are drawn matters more than the seed, so the draw is the replicate,
and methods are compared within it. Draw 42 is the release's.

All methods see OKDPH's views: one per network where a method has as many networks as views,
else one of the three drawn per image and network. `base1-hflip` has the baselines' view in the
paper, `base3` OKDPH's views and cost. OKDPH has the paper's most frequent hyper-parameters,
because it gives none for this network; the others have those of their own papers.
"""

from okdph_jax.experiment import paper

SEEDS = 5
REPLICATE = ("seed", "data.seed")
COMMON = {"epochs": 100, "eval_every_epochs": 20}
VIEWS = paper.okdph_views("cifar10", 2)
OTHERS = ("kdcl", "one", "okddip", "ffl", "pcl", "kr", "mean_teacher", "sam", "swa", "ema")


def get_sweep():
  drawn = {"views": (f"any({', '.join(VIEWS)})",)}
  for_analysis = {"snapshots": 10}
  entries = {
    "okdph": {"config": "limited:okdph,resnet8"} | for_analysis,
    "okdph-release": {"config": "limited:okdph,resnet8"}
    | paper.released("okdph")
    | for_analysis,
    "base1": {"config": "limited:base,resnet8", "method.students": 1} | drawn,
    "base1-hflip": {"config": "limited:base,resnet8", "method.students": 1, "views": VIEWS[:1]},
    "base3": {"config": "limited:base,resnet8", "method.students": 3, "views": VIEWS}
    | for_analysis,
    "dml": {"config": "limited:dml,resnet8"} | drawn | for_analysis,
  }
  entries |= {name: {"config": f"limited:{name},resnet8"} | drawn for name in OTHERS}
  return {name: options | COMMON for name, options in entries.items()}
