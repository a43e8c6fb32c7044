"""The supplement's Table S3: three and four students or branches.

    okdph sweep table_s3 --root=runs/table_s3 --only=students=4

OKDPH has the hyper-parameters of Table 6 and the views of the supplement's section 2, the other
methods the release's options. The numbers of two students are Table 1's.
"""

from okdph_jax.experiment import paper
from okdph_jax.report.paper import METHODS

SEEDS = 5


def get_sweep():
  entries = {}
  for dataset in paper.CIFAR:
    for network in ("resnet32", "vgg16"):
      for students in (3, 4):
        for method in METHODS:
          options = {} if method == "okdph" else paper.released(method)
          options |= {"config": f"{dataset}:{method},{network},{students}"}
          options["method.students"] = students
          entries[f"{dataset}-{network}-{students}-{method}"] = options
  return entries
