"""Self-distillation's explanations, and DOT, on 500 images of CIFAR-10 with ResNet8.

    okdph sweep self_distillation --root=runs/self_distillation

Run k has seed k and draws its images with `data.seed` k, as in `cifar10_small`, whose `base1`,
`base3` and `okdph` are the teachers here. All networks see OKDPH's views. Students learn half
from the labels and half from their teacher at T = 1.

`born` is taught by `base1` and then by itself: with `base1`, five generations. What the other
students change is the teacher, its targets, or the optimizer; each is a test of one explanation
of why self-distillation helps, of our own design (docs/self-distillation.md). `dot` is
`by-ensemble` with DOT's momenta, delta as on ImageNet, where its authors weigh the two losses
alike too; `labels` learns from the labels alone, and logs its distance from the same teacher.
"""

from okdph_jax.experiment import paper

SEEDS = 3
REPLICATE = ("seed", "data.seed")
VIEWS = paper.okdph_views("cifar10", 2)


def get_sweep():
  common = {"epochs": 100, "eval_every_epochs": 20}
  drawn = {"views": (f"any({', '.join(VIEWS)})",)}
  weights = {"method.task_weight": 0.5, "method.distill_weight": 0.5, "method.temperature": 1.0}
  taught = {"config": "limited:kd,resnet8"} | drawn | weights
  for_analysis = {"snapshots": 10}
  delta = ({"name": "dot", "delta": 0.09},)
  entries = {
    "okdph": {"config": "limited:okdph,resnet8"} | for_analysis,
    "base1": {"config": "limited:base,resnet8", "method.students": 1} | drawn,
    "base3": {"config": "limited:base,resnet8", "method.students": 3, "views": VIEWS}
    | for_analysis,
    "born": taught | {"teacher": "base1", "generations": 4},
    "smoothed": taught | {"teacher": "base1", "method.targets": "smoothed"},
    "by-okdph": taught | {"teacher": "okdph:student_0"},
    "by-ensemble": taught | {"teacher": "base3:ensemble"} | for_analysis,
    "by-ensemble-again": taught | {"teacher": "by-ensemble"},
    "dot": taught | {"teacher": "base3:ensemble", "wrappers": delta} | for_analysis,
    "labels": taught
    | {"teacher": "base3:ensemble", "method.task_weight": 1.0, "method.distill_weight": 0.0}
    | for_analysis,
  }
  return {name: options | common for name, options in entries.items()}
