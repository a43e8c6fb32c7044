"""The numbers in the paper's tables, and the runs that they describe.

Zhang et al., CVPR 2023, arXiv:2303.14666: test accuracy in %, mean over five runs, with the
standard deviation where we have it. In each run the authors take the highest accuracy on the
test set, over about 300 evaluations and over the readers in `COUNTED`.

Not here: 41 of the 48 numbers that Table S3 has for methods other than OKDPH, and the other
standard deviations, which we do not have. Table S5 is in `analysis.pac_bayes`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from okdph_jax.experiment import paper as settings
from okdph_jax.experiment.options import DEFAULTS
from okdph_jax.saved_config import LAST_BITS, NO_EFFECT, completed


class Cell(NamedTuple):
  """One number of the paper."""

  accuracy: float  # in %
  deviation: float | None  # over the paper's runs, where we have it
  views: tuple  # of its networks, each once

  def __str__(self):
    spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
    return f"{self.accuracy:.2f}{spread}"


# The readers whose best is the paper's number: method -> how their names begin. `ensemble` and
# `fused` are more than one network. `center`, `gated` and `concatenated` never count.
COUNTED = {
  "okdph": ("student_", "hybrid"),
  "one": ("student_", "ensemble"),
  "okddip": ("student_", "leader", "ensemble"),
  "ffl": ("student_", "fused"),
  "pcl": ("mean_",),
  "mean_teacher": ("student_", "teacher"),
}
AVERAGED = "swa_"  # the prefix of the readers that `swa` adds, which count like their twins

METHODS = ("dml", "one", "kdcl", "okddip", "ffl", "pcl", "okdph")

# Table 1: clean data, CIFAR-10 and then CIFAR-100.
TABLE_1_NETWORKS = ("resnet32", "resnet110", "vgg16", "densenet40_12", "wrn20_8")
TABLE_1 = {
  "mean_teacher": """
    93.71 94.78 94.07 93.25 94.68
    71.29 75.26 72.64 70.82 76.58""",  # its EMA row
  "swa": """
    94.00 94.79 94.56 93.18 94.65
    72.06 75.26 74.69 71.10 76.31""",
  "sam": """
    94.41 94.91 95.13 93.17 95.13
    72.54 75.50 74.55 70.74 75.86""",
  "dml": """
    94.27 95.13 94.28 93.66 95.04
    72.82 75.91 73.56 71.57 77.29""",
  "one": """
    94.31 95.27 93.83 92.95 94.79
    74.02 78.37 72.59 70.32 77.98""",
  "kdcl": """
    93.91 95.11±0.16 94.24 93.87±0.08 95.27±0.16
    71.83±0.34 78.28±0.32 73.98±0.22 71.35±0.42 77.97±0.30""",
  "okddip": """
    94.19 95.16 93.72 93.03 94.61
    71.71 77.60 72.71 70.30 77.75""",
  "ffl": """
    94.32 95.33 93.92 92.93 92.16
    73.39 77.61 72.95 70.78 69.53""",
  "pcl": """
    94.20 94.85 94.22 92.25 92.57
    72.86 78.33 73.54 69.95 77.88""",
  "kr": """
    93.37 95.19 93.77 92.64 94.93
    70.12 75.10 72.21 69.31 74.66""",
  "okdph": """
    95.01±0.09 96.28±0.09 95.32±0.05 94.34±0.13 95.95±0.09
    74.10±0.22 79.68±0.29 75.56±0.12 72.30±0.26 78.88±0.08""",
}

# Table 2: ImageNet, ResNet18. The hyper-parameters of these two are not published, so that no
# run is known to be theirs.
UNPUBLISHED = ("kd", "okdph")
TABLE_2 = {
  "kd": "69.51",
  "dml": "69.82",
  "one": "70.18",
  "kdcl": "69.60",
  "okddip": "69.93",
  "ffl": "68.85",
  "pcl": "70.22",
  "okdph": "70.66",
}

# Table 3 (and S4): columns as METHODS, lines noisy inputs, 10 % and 1 % of the training set.
TABLE_3 = {
  ("cifar10", "resnet32"): """
    83.02 83.44 82.95 83.70 83.38 83.18 84.27
    81.48 81.64 81.15 81.50 81.52 81.13 81.95
    38.66 41.08 41.20 38.68 38.55 33.17 44.14""",
  ("cifar10", "vgg16"): """
    83.96 83.09 83.91 83.34 83.00 83.07 84.93
    80.56 76.64 81.49 78.17 79.26 79.44 83.40
    41.03 35.93 42.79 35.75 40.28 39.73 43.54""",
  ("cifar10", "densenet40_12"): """
    81.37 80.62 81.53 80.85 80.94 80.57 81.67
    82.07 80.19 81.70 80.49 79.83 80.31 82.45
    45.21 45.02 44.47 44.24 42.96 44.89 46.98""",
  ("cifar100", "resnet32"): """
    51.84 52.07 50.06 52.16 50.49 50.43 52.89
    39.99 40.92 39.05 40.88 39.20 41.54 41.83
    8.70 8.13 9.40 7.64 8.80 9.42 9.71""",
  ("cifar100", "vgg16"): """
    51.59 49.81 49.38 49.28 48.62 50.61 53.63
    38.65 28.21 38.19 29.09 32.86 28.99 42.59
    7.73 5.18 7.38 5.91 6.62 5.27 8.32""",
  ("cifar100", "densenet40_12"): """
    47.44 47.70 46.73 47.56 47.08 46.27 48.62
    41.22 37.52 41.89 37.90 39.09 38.92 42.24
    8.71 7.80 8.53 7.92 8.49 7.46 8.74""",
}
TABLE_3_SETTINGS = ("noisy", "10 %", "1 %")

# Table 4: OKDPH on CIFAR-10 with ResNet32, one hyper-parameter changed at a time.
TABLE_4 = {
  "omega": {0.2: "94.49", 0.4: "94.53", 0.6: "94.68", 0.8: "95.01", 1.0: "94.51"},
  "beta": {0.0: "94.73", 0.2: "94.79", 0.5: "94.83", 0.8: "95.01", 1.0: "94.59"},
  "gamma": {0.0: "94.17", 0.2: "94.62", 0.5: "95.01", 0.8: "94.74", 1.0: "94.56"},
  "fuse_every": {
    "5 steps": "94.73",
    "200 steps": "94.81",
    "1 epoch": "95.01",
    "2 epochs": "94.64",
    "5 epochs": "93.79",
  },
}

# Table 5: OKDPH's parts with ResNet32, CIFAR-10 and CIFAR-100. Its last row, with the hybrid's
# loss, is Table 1's. The paper says neither which views the first row had, nor whether the
# hybrid was part of the target before the last: here it was not.
TABLE_5 = {"ce": "93.26 72.76", "kd": "94.47 73.31", "fusion": "94.75 73.60"}
PARTS = {
  "ce": dict(omega=1.0, beta=0.0, gamma=0.0),
  "kd": dict(omega=1.0, gamma=0.0, hybrid_teaches=False),
  "fusion": dict(omega=1.0, hybrid_teaches=False),
}

# Table S3: three and four students or branches, as far as we have it.
TABLE_S3 = {
  ("cifar10", "resnet32", 3): {
    "okdph": "95.03",
    "one": "94.36",
    "okddip": "94.22",
    "pcl": "94.22",
  },
  ("cifar10", "resnet32", 4): {"okdph": "95.13", "ffl": "94.69"},
  ("cifar10", "vgg16", 3): {"okdph": "95.72"},
  ("cifar10", "vgg16", 4): {"okdph": "95.78", "pcl": "94.38"},
  ("cifar100", "resnet32", 3): {"okdph": "74.28"},
  ("cifar100", "resnet32", 4): {"okdph": "74.56", "okddip": "74.24"},
  ("cifar100", "vgg16", 3): {"okdph": "77.68"},
  ("cifar100", "vgg16", 4): {"okdph": "78.06", "dml": "74.17"},
}

# Options in which a method as published and as released differ, and their two values: the paper
# describes the first of all, its authors ran the second of all: its number belongs to both.
EITHER = {
  "okdph": {
    "hybrid_gradient": (True, False),
    "weights": ("dirichlet", "uniform"),
    "fuse_with": ("updated", "previous"),
    "fuse_clock": ("run", "epoch"),
  },
  "one": {"detach_target": (True, False)},
  "ffl": {"fusion_weight_decay": (1e-5, 5e-4)},
  "pcl": {"decay": (0.999, 0.0)},
  "kr": {"fade": (True, False)},
}

IMAGENET = settings.IMAGENET_TRAINING | {"data.test": "validation", "data.image_size": 224}

# Options of a run that a cell does not depend on, or that `cell` compares by itself.
FREE = {
  *(NO_EFFECT | LAST_BITS),
  *("seed", "data.name", "data.fraction", "data.replacement", "data.seed"),
  *("data.memory_limit", "data.corrupt", "network", "method.name", "wrappers", "views"),
  *("test_view", "teacher", "teacher_network", "eval_every_epochs", "snapshots"),
}

NOISE = re.compile(r"\|noise(\((1(\.0*)?)?\))?$")  # of the paper's deviation, on a whole view


def counts(method: str, reader: str) -> bool:
  """Whether the paper's number may be the accuracy of this reader."""
  return reader.removeprefix(AVERAGED).startswith(COUNTED.get(method, ("student_",)))


def setting(config: Mapping[str, Any]) -> str:
  """The setting of a config: "clean", "noisy", or a part of the training set, "10 %"."""
  fraction = config["data"].get("fraction", 1.0)
  parts = ["noisy"] * any("noise" in view for view in config["views"])
  parts += [f"{100 * fraction:g} %"] * (fraction != 1)
  return ", ".join(parts) or "clean"


def without_noise(view: str) -> str:
  """A view without the paper's noise at its end."""
  return NOISE.sub("", view)


def cell(config: Mapping[str, Any]) -> Cell | None:
  """The `Cell` that describes the run of this config, or None.

  It describes a run with the same method, network, data, hyper-parameters and training. Only
  the views may differ; the cell has the paper's. config: of a result.json, as it was recorded.
  A part of the images whose draw was not recorded is not known to be the paper's.
  """
  if config["data"].get("fraction", 1.0) != 1 and "seed" not in config["data"]:
    return None
  config = completed(config)
  method, wrappers = dict(config["method"]), [dict(w) for w in config.get("wrappers", ())]
  row = _row(method, wrappers)
  dataset, students = config["data"]["name"], method.get("students", 1)
  key = dataset, setting(config), config["network"], row, students
  for options, number in _CELLS.get(key, ()):
    if (
      _has(method, options)
      and (row not in ("sam", "swa") or wrappers == [settings.release_wrapper(row, dataset)])
      and _trained_alike(config)
      and _noisy_alike(config)
    ):
      accuracy, _, deviation = number.partition("±")
      views = _views(dataset, row, students)
      return Cell(float(accuracy), float(deviation) if deviation else None, views)
  return None


def _row(method, wrappers):
  """The row of the paper's tables for a run, or None."""
  if not wrappers:
    return method["name"]
  names = [wrapper["name"] for wrapper in wrappers]
  return {("base", "asam"): "sam", ("base", "swa"): "swa"}.get((method["name"], *names))


def _has(method, options):
  """Whether a method has these options {name: value}, and no other that is set."""
  others = method.keys() - options.keys() - {"name", "students"}
  return not any(method[name] for name in others) and all(
    name in method and _same(method[name], value) for name, value in options.items()
  )


def _same(a, b):
  """Whether two values are equal; "1 epochs" equals "1 epoch"."""
  return a == b or isinstance(a, str) and isinstance(b, str) and a.rstrip("s") == b.rstrip("s")


def _trained_alike(config):
  """Whether a run was trained like the paper's: from scratch, on the images of its setting."""
  data = config["data"]
  its = IMAGENET if data["name"] == "imagenet2012" else settings.CIFAR_TRAINING
  run = config | {f"data.{name}": value for name, value in data.items()}
  its_draw = data.get("replacement", False) and data["seed"] == 42
  return (data.get("fraction", 1.0) == 1 or its_draw) and all(
    _listed(run.get(name, DEFAULTS[name])) == _listed(value)
    for name, value in (DEFAULTS | its).items()
    if name not in FREE
  )


def _listed(value):
  """A tuple as JSON returns it."""
  return list(value) if isinstance(value, tuple) else value


def _noisy_alike(config):
  """Whether a run has no noise, or the paper's on all views, with or without the test's."""
  *views, test = (view.replace(" ", "") for view in (*config["views"], config["test_view"]))
  noisy = {without_noise(view) != view for view in views}
  return (
    len(noisy) == 1
    and not any("noise" in without_noise(view) for view in views)
    and (test == "plain" or noisy == {True} and without_noise(test) == "plain")
  )


def _views(dataset, row, students):
  if row == "okdph":
    return settings.okdph_views(dataset, students)
  return (settings.PLAIN_VIEW[dataset],)


def _cells():
  """((dataset, setting, network, row, students), the row's options, its number)."""
  for row, numbers in TABLE_1.items():
    for dataset, line in zip(settings.CIFAR, numbers.split("\n")[1:], strict=True):
      for network, number in zip(TABLE_1_NETWORKS, line.split(), strict=True):
        yield _cell(dataset, "clean", network, row, number)
  for row in TABLE_2.keys() - UNPUBLISHED:
    yield _cell("imagenet2012", "clean", "resnet18", row, TABLE_2[row])
  for (dataset, network), block in TABLE_3.items():
    for there, line in zip(TABLE_3_SETTINGS, block.split("\n")[1:], strict=True):
      for row, number in zip(METHODS, line.split(), strict=True):
        yield _cell(dataset, there, network, row, number)
  for name, column in TABLE_4.items():
    for value, number in column.items():
      key, options, tuned = _cell("cifar10", "clean", "resnet32", "okdph", number)
      if options[name] != value:
        yield key, options | {name: value}, tuned
  for part, numbers in TABLE_5.items():
    for dataset, number in zip(settings.CIFAR, numbers.split(), strict=True):
      key, options, tuned = _cell(dataset, "clean", "resnet32", "okdph", number)
      yield key, options | PARTS[part], tuned
  for (dataset, network, students), column in TABLE_S3.items():
    for row, number in column.items():
      yield _cell(dataset, "clean", network, row, number, students)


def _cell(dataset, there, network, row, number, students=None):
  options = settings.RELEASE[row]
  if not students:
    students = 2 if row == "okdph" else options.get("students", 1)
    students = 3 if (row, network) == ("pcl", "densenet40_12") else students
  if row == "okdph" and there == "clean":
    options = options | settings.CLEAN.get((dataset, network, students), settings.DEFAULT)
  elif row == "okdph":
    share = {"10 %": 0.1, "1 %": 0.01}.get(there, there)
    options = options | settings.HARD[dataset, network, share]
  options = {name: value for name, value in options.items() if name != "students"}
  return (dataset, there, network, row, students), options, number


def _by_run():
  """{(dataset, setting, network, row, students): [(the row's options, its number), ...]}."""
  found = defaultdict(list)
  for key, options, number in _cells():
    for side in (0, 1):  # as published, as released
      either = {name: values[side] for name, values in EITHER.get(key[3], {}).items()}
      found[key].append((options | either, number))
  return dict(found)


_CELLS = _by_run()
