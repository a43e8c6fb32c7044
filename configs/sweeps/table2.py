"""The paper's Table 2: ImageNet, ResNet18, two students or branches.

    okdph sweep table2 --root=runs/table2 --config.data.dir=DIR

Training is the paper's (section 4.1: 100 epochs, batch 256). OKDPH's hyper-parameters for
ImageNet are not published: ours are its most frequent cell. The others have the release's
options. KD's teacher is not named in the paper: ours is a ResNet34, trained first, with the
loss weights of megvii-research/mdistiller.
"""

from okdph_jax.experiment import paper
from okdph_jax.report.paper import TABLE_2

SEEDS = 5


def get_sweep():
  entries = {"teacher": {"config": "imagenet:base,resnet34", "seeds": 1}}
  for method in TABLE_2:
    entries[method] = {"config": f"imagenet:{method},resnet18"}
    if method != "okdph":
      entries[method] |= paper.released(method)
  entries["kd"]["teacher"] = "teacher"
  entries["okdph-release"] = entries["okdph"] | paper.released("okdph")
  return entries
