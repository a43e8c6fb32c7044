"""Controls of OKDPH: where its gain comes from. CIFAR-10 and CIFAR-100, ResNet32.

    okdph sweep controls --root=runs/controls --only=dataset=cifar10

OKDPH as in the paper, with each of the release's switches, and as in the release; without its
views; other methods with its views, `base3` at its cost; and plain training with its smaller
loss. Hyper-parameters of OKDPH: the supplement's Table 6. The other methods have the options of
their own papers. docs/paper-and-release.md says why each is needed.
"""

from okdph_jax.experiment import paper

SEEDS = 5
OTHERS = ("dml", "kdcl", "one", "okddip", "ffl", "pcl", "kr", "mean_teacher", "sam", "swa")
SWITCHES = {
  "detached": {"method.hybrid_gradient": False},
  "uniform": {"method.weights": "uniform"},
  "previous": {"method.fuse_with": "previous"},
  "release": paper.released("okdph"),
}


def get_sweep():
  entries = {}
  for dataset in paper.CIFAR:
    views = paper.okdph_views(dataset, 2)
    okdph = {"config": f"{dataset}:okdph,resnet32"}
    base3 = {"config": f"{dataset}:base,resnet32,3", "views": views}
    drawn = {"views": (f"any({', '.join(views)})",)}
    own = {"okdph": okdph}
    own |= {f"okdph-{name}": okdph | switch for name, switch in SWITCHES.items()}
    own["okdph-plain-views"] = okdph | {"views": views[:1]}
    own["base1"] = {"config": f"{dataset}:base,resnet32,1"} | drawn
    own["base3"] = base3
    for scale in (0.8, 0.5, 0.3):  # the values of omega in Table 6
      wrappers = ({"name": "weighted", "task_weight": scale},)
      own[f"base3-loss{scale}"] = base3 | {"wrappers": wrappers}
    own |= {name: {"config": f"{dataset}:{name},resnet32"} | drawn for name in OTHERS}
    entries |= {f"{dataset}-{name}": options for name, options in own.items()}
  return entries
