"""The paper's settings as tables, and configs made of them.

From the supplement of arXiv:2303.14666 (Zhang et al., CVPR 2023): Tables 6 and 7 for OKDPH's
hyper-parameters, section 2 for the views; the authors' scripts agree with Table 6. The training
settings (SGD 0.1, momentum 0.9, weight decay 5e-4, batch 128, 300 epochs, x0.1 at 150 and 225)
are those of section 4.1 and of the release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from okdph_jax.errors import nearest
from okdph_jax.experiment.options import DEFAULTS

if TYPE_CHECKING:  # reports need no ml_collections
  from ml_collections import ConfigDict


def cell(omega, beta, gamma, fuse_every):
  return dict(omega=omega, beta=beta, gamma=gamma, fuse_every=fuse_every)


# Table 6: (dataset, network, students).
CLEAN: dict[tuple[str, str, Any], dict[str, Any]] = {
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
HARD: dict[tuple[str, str, Any], dict[str, Any]] = {
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

# Where the paper gives none, as on ImageNet: its most frequent setting, 9 of 36 (our choice).
DEFAULT = cell(0.8, 0.8, 0.5, "5 steps")

CIFAR = ("cifar10", "cifar100")

# Section 4.1; milestones are for 300 epochs and scale with the epochs.
TRAINING = ("batch_size", "learning_rate", "momentum", "weight_decay", "epochs", "milestones")
CIFAR_TRAINING = {name: DEFAULTS[name] for name in TRAINING}
IMAGENET_TRAINING = CIFAR_TRAINING | dict(
  batch_size=256, weight_decay=1e-4, epochs=100, milestones=(90, 180, 270)
)

# The view of the first student and of all baselines (supplement, section 2). ImageNet's has no
# crop, because streamed images are cropped for each view when they are decoded.
PLAIN_VIEW = {"cifar10": "hflip", "cifar100": "hflip+rot", "imagenet2012": "flip"}

# Rows that are wrappers around `base`: (options of base, {dataset: options of the wrapper}).
# The radii are those of the papers of SAM and ASAM, the label smoothing is OKDPH's.
WRAPPED = {
  "sam": (dict(label_smoothing=0.1), {"cifar10": dict(rho=0.05), "cifar100": dict(rho=0.1)}),
  "asam": (dict(label_smoothing=0.1), {"cifar10": dict(rho=0.5), "cifar100": dict(rho=1.0)}),
  "swa": ({}, {}),
  "ema": ({}, {}),  # the paper's "EMA" row is mean_teacher
}

# The methods as in the release of OKDPH's authors, without options that differ between cells.
# (Its PCL on DenseNet has three students.)
RELEASE = {
  "okdph": dict(
    hybrid_gradient=False,
    weights="uniform",
    fuse_with="previous",
    fuse_clock="epoch",
    temperature=4.0,
    alpha=1.0,
    same_init=True,
    hybrid_teaches=True,
  ),
  "dml": dict(students=2, same_init=False),
  "kdcl": dict(
    students=2,
    target="mean",
    task_weight=0.5,
    distill_weight=0.5,
    temperature=4.0,
    same_init=False,
  ),
  "one": dict(students=2, temperature=3.0, detach_target=False),
  "okddip": dict(students=2, temperature=3.0, detach_mean=False),
  "ffl": dict(students=2, temperature=3.0, fusion_weight_decay=5e-4),
  "pcl": dict(students=2, temperature=3.0, decay=0.0),
  "kr": dict(temperature=2.0, fade=False, distances=None),
  "mean_teacher": dict(weight=10.0, decay=0.99),
  "sam": dict(label_smoothing=0.1, same_init=False),
  "swa": dict(label_smoothing=0.0, same_init=False),
}

# Those of which an option other than the number of students is not our default, their papers'.
RELEASED_OTHERWISE = ("okdph", "kdcl", "one", "ffl", "pcl", "kr")


def released(name: str) -> dict[str, Any]:
  """A method's options as the release has them, as a sweep file writes them."""
  options = RELEASE.get(name, {}).items()
  return {f"method.{option}": value for option, value in options if value is not None}


def release_wrapper(name: str, dataset: str) -> dict[str, Any]:
  """The wrapper around `base` in the release's rows "sam" and "swa"."""
  if name == "sam":  # it is ASAM with SAM's radii, interchanged between the datasets
    return dict(name="asam", rho={"cifar10": 0.1, "cifar100": 0.05}[dataset], eta=0.0)
  return dict(name="swa", start=241, learning_rate=0.001)


def okdph_views(dataset: str, students: int) -> tuple[str, ...]:
  """One view per student, and the hybrid's last (of two students: section 4.1)."""
  first = PLAIN_VIEW.get(dataset, "hflip")
  views = {
    2: (first, "cutout", "augment"),
    3: (first, "cutout", "augment", "auto_aug"),
    4: (first, "cutout", "augment", "plain", "auto_aug"),
  }
  if dataset == "imagenet2012":
    views = {2: (first, "randaugment", "autoaugment")}
  if students < 2:
    raise ValueError(f"okdph hybridizes at least 2 students; students is {students}")
  if students not in views:
    raise ValueError(
      f"the paper has views for {', '.join(map(str, views))} students on {dataset}, not for "
      f"{students}; set config.method.students={students} and config.views with one view more"
    )
  return views[students]


# The views of four students in the release's README; the last is the hybrid's.
README_VIEWS = {
  dataset: (PLAIN_VIEW[dataset], "cutout", "augment", "auto_aug", "plain") for dataset in CIFAR
}


def row(
  name: str, network: str, dataset: str, setting: str | float | None = None, **options: Any
) -> tuple[dict[str, Any], tuple[dict[str, Any], ...], tuple[str, ...]]:
  """A row of the paper's tables: (`config.method`, `config.wrappers`, `config.views`).

  setting: see `recipe`. options: of the method, in place of the paper's. The method and the
  wrappers are returned with all their options.
  """
  from okdph_jax.experiment.config import defaults
  from okdph_jax.methods import METHODS, WRAPPERS

  if name not in METHODS and name not in WRAPPED:
    known = [*METHODS, *WRAPPED]
    raise ValueError(f"method {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
  wrappers = ()
  if name in WRAPPED:
    inner, radii = WRAPPED[name]
    options = inner | options
    wrappers = (dict(name=name) | defaults(WRAPPERS[name]) | radii.get(dataset, {}),)
    name = "base"
  method = dict(name=name) | defaults(METHODS[name])
  if "students" in options and "students" not in method:
    raise ValueError(f"{name} trains a single network; remove the number of students")
  students = options.get("students", method.get("students", 1))
  if students < 1:
    raise ValueError(f"students is {students}; there must be at least 1")
  if name == "okdph":
    table, last = (CLEAN, students) if setting is None else (HARD, setting)
    method |= table.get((dataset, network, last), DEFAULT)
    return method | options, wrappers, okdph_views(dataset, students)
  return method | options, wrappers, (PLAIN_VIEW.get(dataset, "hflip"),)  # for all networks


def recipe(
  dataset: str,
  method: str = "okdph",
  network: str = "resnet32",
  *,
  setting: str | float | None = None,
  **options: Any,
) -> ConfigDict:
  """The config of one cell of the paper's tables.

  setting: "noisy", or a fraction of the training set, for a cell of Table 7. options: of the
  method, in place of the paper's.
  """
  from okdph_jax.experiment.config import default  # ml_collections comes with it

  config = default()
  config.data.name = dataset
  config.network = network
  config.method, config.wrappers, config.views = row(
    method, network, dataset, setting, **options
  )
  return config


def split(argument: str | None, **parts: Any) -> dict[str, Any]:
  """Parses a config's argument: "dml,vgg16" -> {"method": "dml", "network": "vgg16"}.

  parts: {name: default} in order. A tuple lists the allowed values, the default first; a part
  with the default None is a whole number, and left out of the result if it is not given.
  """
  values = [value.strip() for value in argument.split(",")] if argument else []
  if len(values) > len(parts):
    raise ValueError(
      f"the config's argument is {','.join(parts).upper()}, but {argument!r} was given"
    )
  values += [""] * (len(parts) - len(values))
  read = {
    name: _read(name, value, default)
    for (name, default), value in zip(parts.items(), values, strict=True)
  }
  return {name: value for name, value in read.items() if value is not None}


def _read(name, value, default):
  """The value of one part of a config's argument; ValueError, in one line, if it is invalid."""
  if isinstance(default, tuple):
    if value and value not in default:
      raise ValueError(
        f"{name} {value!r} is not one of {', '.join(default)}{nearest(value, default)}"
      )
    return value or default[0]
  kind = int if default is None else type(default)
  try:
    return kind(value) if value else default
  except ValueError:
    wanted = {int: "a whole number", float: "a number"}[kind]
    raise ValueError(f"{name} is {value!r}; it must be {wanted}") from None
