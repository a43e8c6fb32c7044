"""The paper's Table 5: OKDPH's parts, added one after the other.

    okdph sweep table5 --root=runs/table5

ResNet32, two students with OKDPH's views. `okdph report` has the paper's numbers beside:

    ce                    the labels alone
    kd                    + distillation from the students' mean
    fusion                + fusion with the hybrid
    fusion-target         the same, the hybrid's logits in z_en
    loss                  + the hybrid's loss, which is OKDPH

The paper does not say with which views the first row was trained, nor whether z_en has the
hybrid's logits before the last row: `fusion` and `fusion-target` are the two possibilities.
beta, gamma and the interval are Table 6's. For CIFAR-100 that table has omega = 1, which is no
loss of the hybrid: its cell, and the last row's 74.10, is `fusion-target` here, and `loss` has
CIFAR-10's 0.8.
"""

from okdph_jax.report import paper

SEEDS = 5
PARTS = paper.PARTS | {"fusion-target": {"omega": 1.0}, "loss": {"omega": 0.8}}


def get_sweep():
  return {
    f"{dataset}-{part}": {"config": f"{dataset}:okdph,resnet32"}
    | {f"method.{name}": value for name, value in options.items()}
    for dataset in ("cifar10", "cifar100")
    for part, options in PARTS.items()
  }
