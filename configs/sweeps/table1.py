"""The paper's Table 1: CIFAR-10 and CIFAR-100, five networks, every method.

    okdph sweep table1 --root=runs/table1 --only=method=okdph,network=resnet32

Every method has the options that its authors' release ran it with, which gave the paper's
numbers; `okdph` is the paper's Algorithm 1 and `okdph-release` what the release computes.
Source: `okdph_jax/experiment/paper.py` (the supplement's Table 6, main text section 4.1). The
paper has five runs of each.
"""

from okdph_jax.experiment import paper
from okdph_jax.report.paper import TABLE_1, TABLE_1_NETWORKS

SEEDS = 5


def get_sweep():
  entries = {}
  for dataset in paper.CIFAR:
    for network in TABLE_1_NETWORKS:
      place = f"{dataset}-{network}"
      for method in TABLE_1:
        entries[f"{place}-{method}"] = {"config": f"release:{method},{network},{dataset}"}
      entries[f"{place}-okdph-release"] = entries[f"{place}-okdph"]
      entries[f"{place}-okdph"] = {"config": f"{dataset}:okdph,{network}"}
  return entries
