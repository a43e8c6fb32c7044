"""CIFAR with the methods as the authors' release computes them, to reproduce published cells.

    python -m okdph_jax.main --config=configs/release.py:okdph,vgg16,cifar100 --workdir=DIR
    okdph train --config=release:okdph,resnet32,cifar10,0.01 --workdir=DIR
    okdph train --config=release:okdph,vgg16,cifar10,1,both --workdir=DIR
    okdph train --config=release:okdph,resnet32,cifar10,1,none,4,readme --workdir=DIR

The argument is METHOD,NETWORK,DATASET,FRACTION,NOISE,STUDENTS,VARIANT. Without the others it
is okdph,resnet32,cifar10 on all images without noise, with the release's number of students.
NOISE is `none`, `both` (the release's, on training and test images) or `train`, see
`configs/noisy.py`; a FRACTION is drawn as in `configs/limited.py`. VARIANT matters for okdph
with four students: the paper's `supplement` gives the fourth student plain images and has its
own interval of fusion, the command in the release's `readme` gives the plain images to the
hybrid and fuses every epoch.

OKDPH has four switches against the paper's Algorithm 1: the hybrid's loss does not reach the
students, the hybrid is the plain mean, students are fused with the hybrid that the step's
forward pass used, and the interval counts within the epoch, from its first batch. The reader
`hybrid` is the hybrid of the last forward pass, with the batch statistics that this pass left
it. The options of all methods are `RELEASE` in `okdph_jax/experiment/paper.py`.

Two things are otherwise here. Fusion is part of the step and precedes every evaluation, while
the release evaluates before it fuses by epochs: with gamma = 1 and an interval of an epoch
all students are equal when they are evaluated here. KR's table starts at zero: the release
starts it from distances between the word vectors of the class names, files that are not in
it. What the release gets wrong beyond a switch (FFL's thin WRN20-8, DenseNet's shared
branches, PCL's ramp) is not reproduced.
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(
  method="okdph",
  network="resnet32",
  dataset=paper.CIFAR,
  fraction=1.0,
  noise=("none", "both", "train"),
  students=None,
  variant=("supplement", "readme"),
)


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  fraction, noise, variant = (options.pop(name) for name in ("fraction", "noise", "variant"))
  method = options["method"]
  if fraction != 1 and noise != "none":
    raise ValueError(
      f"the release has no cell of {100 * fraction:g} % of the images with noise; "
      "leave one of FRACTION and NOISE out"
    )
  three = {"students": 3} if (method, options["network"]) == ("pcl", "densenet40_12") else {}
  options = paper.RELEASE.get(method, {}) | three | options
  setting = "noisy" if noise != "none" else fraction if fraction != 1 else None
  config = paper.recipe(setting=setting, **options)
  if method == "sam":
    config.wrappers = (paper.release_wrapper("sam", options["dataset"]),)
  if variant == "readme":
    if method != "okdph" or config.method.students != 4:
      raise ValueError("the variant readme is okdph's with four students; leave VARIANT out")
    config.views = paper.README_VIEWS[options["dataset"]]
    config.method.fuse_every = "1 epoch"
  if fraction != 1:
    config.data.fraction = fraction
    config.data.replacement = True
  if noise != "none":
    config.views = tuple(f"{view}|noise" for view in config.views)
  if noise == "both":
    config.test_view = "plain|noise"
  return config
