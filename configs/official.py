"""ONE, OKDDip, FFL and PCL as their authors train them, on CIFAR.

    python -m okdph_jax.main --config=configs/official.py:okddip,resnet110 --workdir=DIR

The argument is METHOD,NETWORK,DATASET, one,resnet32,cifar100 by default. All have SGD at 0.1
with momentum 0.9, divided by 10 at epochs 150 and 225 of 300, batches of 128 and T = 3; where
they differ from each other, the table below has the value of the code that its comment names.
The paper's tables were measured with its own recipe for all, see `configs/release.py`. Views
are the authors' too: a crop and a flip, one for all branches, in PCL one for each.
"""

from okdph_jax.experiment import paper

# The method's options, weight decay, and whether momentum is Nesterov's.
OFFICIAL = {
  # Lan1991Xu/ONE_NeurIPS2018, scripts/ONE_ResNet32.sh; it lowers the rate an epoch later
  "one": (dict(students=3, temperature=3.0, detach_target=True), 1e-4, False),
  # DefangChen/OKDDip-AAAI2020, train_GL.py: three peers and the leader
  "okddip": (dict(students=4, temperature=3.0, detach_mean=False), 5e-4, True),
  # Jangho-Kim/FFL-pytorch, train_FFL.py; it goes on for an epoch more
  "ffl": (dict(students=2, temperature=3.0, fusion_weight_decay=1e-5), 1e-4, True),
  # the authors' is not public: shaoeric/Peer-Collaborative-Learning-for-Online-Knowledge-
  # Distillation, src/optimizer/optimizer_config.yml, with the paper's three peers
  "pcl": (dict(students=3, temperature=3.0, decay=0.999), 5e-4, True),
}
ARGUMENT = dict(method=tuple(OFFICIAL), network="resnet32", dataset=("cifar100", "cifar10"))


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  method, weight_decay, nesterov = OFFICIAL[options["method"]]
  config = paper.recipe(**options, **method)
  config.views = ("hflip",)
  config.weight_decay = weight_decay
  config.nesterov = nesterov
  return config
