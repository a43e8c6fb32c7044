"""The 1 % column of the paper's Table 3 with its network: 500 images of CIFAR-10, ResNet32.

    okdph sweep limited_resnet32 --root=runs/limited_resnet32

Every run sees the images that the release draws; run k has seed k. `okdph` has the values of
the supplement's Table 7, `okdph-release` the release's four switches as well. `base-hflip`
and `dml-hflip` see flipped images alone, as in the paper; `base` and `dml` see OKDPH's views,
one of the three drawn per image and network. `okdph-0.8` has omega = beta = 0.8, the values
that the paper uses most: with Table 7's omega = 1 the hybrid has no loss of its own.
`okdph-0.8-no-gradient` is the same without the gradient of the hybrid's loss, as the release.
"""

from okdph_jax.experiment import paper

SEEDS = 3
VIEWS = paper.okdph_views("cifar10", 2)


def get_sweep():
  okdph = {"config": "limited:okdph,resnet32"}
  base = {"config": "limited:base,resnet32", "method.students": 1}
  dml = {"config": "limited:dml,resnet32"}
  values = {"method.omega": 0.8, "method.beta": 0.8}
  drawn, flipped = {"views": (f"any({', '.join(VIEWS)})",)}, {"views": VIEWS[:1]}
  entries = {
    "okdph": okdph,
    "okdph-release": okdph | paper.released("okdph"),
    "base-hflip": base | flipped,
    "dml-hflip": dml | flipped,
    "base": base | drawn,
    "dml": dml | drawn,
    "okdph-0.8": okdph | values,
    "okdph-0.8-no-gradient": okdph | values | {"method.hybrid_gradient": False},
  }
  return {name: options | {"eval_every_epochs": 60} for name, options in entries.items()}
