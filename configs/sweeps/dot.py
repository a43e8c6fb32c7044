"""DOT (Zhao et al., ICCV 2023, arXiv:2307.08436): its delta, and the weight of the labels.

    okdph sweep dot --root=runs/dot --only=network=vgg8

CIFAR-100, two teachers with their students, settings as in `configs/dot.py` (mdistiller's).
Each teacher is trained once. `ce` learns from the labels alone, `control` is plain SGD with the
loss weights that DOT's momenta amount to. delta = 0 is plain momentum for both losses. alpha is
the weight of the labels, 1 - alpha the teacher's, 0.1 in mdistiller; in that sweep delta is its
0.075. Both grids are ours.
"""

SEEDS = 3
SYSTEMS = ("resnet32x4-resnet8x4", "vgg13-vgg8")
DELTAS = (0.0, 0.025, 0.05, 0.075, 0.09)
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)


def get_sweep():
  entries = {}
  for system in SYSTEMS:
    teacher, student = system.split("-")
    entries[teacher] = {"config": f"dot:teacher,{system}", "seeds": 1}
    taught = {
      "ce": {"config": f"dot:ce,{system}"},
      "control": {"config": f"dot:control,{system}"},
    }
    for delta in DELTAS:
      wrapper = {"name": "dot", "delta": delta}
      taught[f"dot-delta{delta}"] = {"config": f"dot:dot,{system}", "wrappers": (wrapper,)}
    for alpha in ALPHAS:
      weights = {"method.task_weight": alpha, "method.distill_weight": round(1 - alpha, 1)}
      taught[f"kd-alpha{alpha}"] = {"config": f"dot:kd,{system}"} | weights
      if alpha != 0.1:  # that is `dot-delta0.075`
        taught[f"dot-alpha{alpha}"] = {"config": f"dot:dot,{system}"} | weights
    for name, options in taught.items():
      entries[f"{student}-{name}"] = options | {"teacher": teacher}
  return entries
