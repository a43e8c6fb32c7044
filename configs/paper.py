"""The paper's settings as data, and the recipe that they fill.

Source of every number: the supplement of arXiv:2303.14666 (Zhang et al., CVPR 2023), Tables
6 and 7 for OKDPH's hyper-parameters, section 2 for the views; its authors' scripts agree with
Table 6. The recipe (SGD 0.1, momentum 0.9, weight decay 5e-4, batch 128, 300 epochs, x0.1 at
150 and 225) is the paper's section 4.1 and the release's.
"""

import inspect

import ml_collections
from ml_collections import config_dict


def cell(omega, beta, gamma, fuse_every):
  return dict(omega=omega, beta=beta, gamma=gamma, fuse_every=fuse_every)


# Table 6: (dataset, network, students).
CLEAN = {
  ("cifar10", "resnet32", 2): cell(0.8, 0.8, 0.5, "1 epoch"),
  ("cifar10", "resnet110", 2): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar10", "vgg16", 2): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar10", "densenet40_12", 2): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar10", "wrn20_8", 2): cell(0.8, 0.8, 0.5, "1 epoch"),
  ("cifar10", "resnet32", 3): cell(0.8, 0.8, 0.5, "1 epoch"),
  ("cifar10", "resnet32", 4): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar10", "vgg16", 3): cell(0.8, 0.8, 0.5, "1 epoch"),
  ("cifar10", "vgg16", 4): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar100", "resnet32", 2): cell(1.0, 0.5, 1.0, "5 steps"),
  ("cifar100", "resnet110", 2): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar100", "vgg16", 2): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar100", "densenet40_12", 2): cell(1.0, 0.5, 0.5, "5 steps"),
  ("cifar100", "wrn20_8", 2): cell(0.5, 0.5, 0.5, "5 steps"),
  ("cifar100", "resnet32", 3): cell(1.0, 0.5, 1.0, "5 steps"),
  ("cifar100", "resnet32", 4): cell(1.0, 0.5, 1.0, "5 steps"),
  ("cifar100", "vgg16", 3): cell(0.3, 0.3, 1.0, "3 epochs"),
  ("cifar100", "vgg16", 4): cell(0.3, 0.3, 1.0, "2 epochs"),
}

# Table 7: (dataset, network, setting), two students.
HARD = {
  ("cifar10", "resnet32", "noisy"): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar10", "resnet32", 0.1): cell(1.0, 0.5, 1.0, "5 steps"),
  ("cifar10", "resnet32", 0.01): cell(1.0, 0.5, 0.5, "5 steps"),
  ("cifar10", "vgg16", "noisy"): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar10", "vgg16", 0.1): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar10", "vgg16", 0.01): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar10", "densenet40_12", "noisy"): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar10", "densenet40_12", 0.1): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar10", "densenet40_12", 0.01): cell(0.8, 0.8, 0.5, "5 steps"),
  ("cifar100", "resnet32", "noisy"): cell(1.0, 0.0, 0.5, "5 steps"),
  ("cifar100", "resnet32", 0.1): cell(0.5, 0.5, 1.0, "5 steps"),
  ("cifar100", "resnet32", 0.01): cell(1.0, 0.5, 0.5, "5 steps"),
  ("cifar100", "vgg16", "noisy"): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar100", "vgg16", 0.1): cell(0.3, 0.3, 1.0, "1 epoch"),
  ("cifar100", "vgg16", 0.01): cell(0.8, 0.8, 1.0, "1 epoch"),
  ("cifar100", "densenet40_12", "noisy"): cell(1.0, 0.5, 0.5, "5 steps"),
  ("cifar100", "densenet40_12", 0.1): cell(1.0, 0.5, 0.5, "5 steps"),
  ("cifar100", "densenet40_12", 0.01): cell(0.8, 0.8, 0.5, "5 steps"),
}

# Where the paper gives no cell (ours): its most frequent one.
DEFAULT = cell(0.8, 0.8, 0.5, "1 epoch")

# The first student's and every baseline's view; the paper's supplement, section 2.
PLAIN_VIEW = {"cifar10": "hflip", "cifar100": "hflip+rot", "imagenet2012": "hflip"}


def okdph_views(dataset, students):
  """One per student, the hybrid's last (two students: the main text, section 4.1)."""
  first = PLAIN_VIEW.get(dataset, "hflip")
  if dataset == "imagenet2012":
    return (first, "augment", "auto_aug")
  return {
    2: (first, "cutout", "augment"),
    3: (first, "cutout", "augment", "auto_aug"),
    4: (first, "cutout", "augment", "plain", "auto_aug"),
  }[students]


def method_and_views(name, network, dataset, setting=None, students=None):
  """`config.method` with every option that the method has, and `config.views`."""
  from okdph_jax.methods import METHODS

  if name not in METHODS:
    raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
  options = {
    parameter.name: parameter.default
    for parameter in inspect.signature(METHODS[name]).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  if students is not None:
    if "students" not in options:
      raise ValueError(f"{name} trains one network; leave the number of students out")
    options["students"] = students
  m = options.get("students", 1)
  if name == "okdph":
    if not 2 <= m <= 4:
      raise ValueError(f"the paper has okdph with 2, 3 and 4 students; asked for {m}")
    table = CLEAN.get((dataset, network, m)) if setting is None else None
    options |= table or HARD.get((dataset, network, setting), DEFAULT)
    return dict(name=name, **options), okdph_views(dataset, m)
  view = PLAIN_VIEW.get(dataset, "hflip")
  number = m if name in ("base", "dml", "kdcl", "pcl") else 2 if name == "mean_teacher" else 1
  return dict(name=name, **options), (view,) * number


def recipe(dataset, method="okdph", network="resnet32", *, setting=None, students=None):
  """The whole configuration of one CIFAR cell."""
  config = ml_collections.ConfigDict()
  config.seed = 42  # the release's

  config.data = ml_collections.ConfigDict()
  config.data.name = dataset
  config.data.dir = config_dict.placeholder(str)  # None: TFDS's default, ~/tensorflow_datasets
  config.data.train = "train"  # TFDS split syntax
  config.data.test = "test"
  config.data.fraction = 1.0  # of the training set, per class
  config.data.replacement = False  # the release draws its subsets with replacement
  config.data.validation = 0  # images held out of training; the paper has none
  config.data.image_size = config_dict.placeholder(int)  # resize to it; None: as they are
  config.data.memory_limit = 4 * 2**30  # bytes of decoded images; a larger set is streamed
  config.data.corrupt = "stop"  # or "skip": what a corrupt image in a stream does

  config.network = network
  options, config.views = method_and_views(method, network, dataset, setting, students)
  config.method = ml_collections.ConfigDict(options)
  config.wrappers = ()

  config.batch_size = 128
  config.learning_rate = 0.1
  config.momentum = 0.9
  config.weight_decay = 5e-4
  config.epochs = 300
  config.milestones = (
    150,
    225,
  )  # x0.1; epochs of 300, scaled with `epochs`; "40 epochs" is not

  config.eval_every_epochs = 1
  config.snapshots = 0  # epochs between kept copies of the learner, for analyses; 0: none
  config.checkpoint_every_minutes = 10.0  # ours, as are the next
  config.devices = config_dict.placeholder(int)  # CPU: host devices; None: the cores, at most 4
  return config


def split(argument, *names):
  """ "okdph,vgg16" against names: {"method": "okdph", "network": "vgg16"}."""
  values = [value.strip() for value in argument.split(",")] if argument else []
  if len(values) > len(names):
    raise ValueError(f"the config takes {','.join(names)}; got {argument!r}")
  return {name: value for name, value in zip(names, values, strict=False) if value}
