"""The paper's Tables 3 and S4: noisy inputs, and 10 % or 1 % of the training set.

    okdph sweep table3 --root=runs/table3 --only=network=resnet32,fraction=0.01

OKDPH has the hyper-parameters of the supplement's Table 7, the other methods the release's
options; the subsets are drawn as the release draws them. Noise is on the training images, as
the paper says; the release has it on the test images too, which is
--config.test_view="plain|noise". Which of the two gave the paper's numbers is not known.
"""

from okdph_jax.experiment import paper
from okdph_jax.report.paper import METHODS, TABLE_3

SEEDS = 5
SETTINGS = {"noisy": ("noisy", "train"), "10%": ("limited", 0.1), "1%": ("limited", 0.01)}


def get_sweep():
  entries = {}
  for dataset, network in TABLE_3:
    for setting, (config, last) in SETTINGS.items():
      for method in METHODS:
        options = {"config": f"{config}:{method},{network},{dataset},{last}"}
        if method != "okdph":
          options |= paper.released(method)
        if (method, network) == ("pcl", "densenet40_12"):
          options["method.students"] = 3
        entries[f"{dataset}-{setting}-{network}-{method}"] = options
  return entries
