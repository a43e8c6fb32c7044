"""The paper's Table 5: OKDPH's parts, added one after the other.

    okdph sweep table5 --root=runs/table5

ResNet32, two students with OKDPH's views. The paper has (CIFAR-10 / CIFAR-100, in %):

    ce                    the labels alone                          93.26 / 72.76
    kd                    + distillation from the students' mean    94.47 / 73.31
    fusion                + fusion with the hybrid                  94.75 / 73.60
    fusion-target         the same, the hybrid's logits in z_en
    loss                  + the hybrid's loss, which is OKDPH       95.01 / 74.10

It does not say with which views the first row was trained, nor whether z_en has the hybrid's
logits before the last row: `fusion` and `fusion-target` are the two possibilities. beta, gamma
and the interval are Table 6's. For CIFAR-100 that table has omega = 1, which is no loss of the
hybrid: its cell, and the number 74.10, is `fusion-target` here, and `loss` has CIFAR-10's 0.8.
"""

SEEDS = 5
PARTS = {
  "ce": {"method.omega": 1.0, "method.beta": 0.0, "method.gamma": 0.0},
  "kd": {"method.omega": 1.0, "method.gamma": 0.0, "method.hybrid_teaches": False},
  "fusion": {"method.omega": 1.0, "method.hybrid_teaches": False},
  "fusion-target": {"method.omega": 1.0},
  "loss": {"method.omega": 0.8},
}


def get_sweep():
  return {
    f"{dataset}-{part}": {"config": f"{dataset}:okdph,resnet32"} | options
    for dataset in ("cifar10", "cifar100")
    for part, options in PARTS.items()
  }
