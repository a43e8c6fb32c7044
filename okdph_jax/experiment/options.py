"""All options of a config in one table: types, defaults and their sources, bounds, meanings.

`config.check`, `okdph train --help` and docs/configs.md use it. The options of methods and
wrappers are the keyword arguments of their builders, see `okdph_jax.methods`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tabulate import tabulate


class Option(NamedTuple):
  """One option of a config."""

  name: str  # "data.fraction"
  kind: type  # int, float, str, bool or tuple; dict for a group of free names
  default: Any  # None: the option may be unset
  bounds: str | tuple[str, ...]  # an interval such as "(0, 1]", the allowed values, or ""
  meaning: str
  source: str = ""  # of the default; "" means this package

  def admits(self, value: Any) -> bool:
    """Whether a value of the right type is within the bounds; NaN is not."""
    if not self.bounds:
      return True
    if isinstance(self.bounds, tuple):
      return value in self.bounds
    low, high = (float(end) for end in self.bounds[1:-1].split(","))
    above = low <= value if self.bounds[0] == "[" else low < value
    return above and (value <= high if self.bounds[-1] == "]" else value < high)


PAPER, RELEASE = "paper, section 4.1", "release"
COUNT, COUNT_OR_NONE = "[1, 1000000]", "[0, 1000000]"

OPTIONS = (
  Option("seed", int, 42, "[0, 4294967295]", "seed of everything that is random", RELEASE),
  Option(
    "data.name", str, "cifar10", "", "digits, folder, arrays, or the name of a TFDS dataset"
  ),
  Option("data.dir", str, None, "", "its location: TFDS's data_dir, a folder, or an .npz file"),
  Option("data.train", str, "train", "", "training split, in TFDS's syntax, or a subfolder"),
  Option(
    "data.test",
    str,
    "test",
    "",
    'test split; "20%" holds out that part of a folder or of arrays',
  ),
  Option(
    "data.fraction", float, 1.0, "(0, 1]", "part of each class to train on, drawn by data.seed"
  ),
  Option(
    "data.replacement", bool, False, "", "draw that part with replacement, as the release does"
  ),
  Option(
    "data.validation",
    int,
    0,
    "[0, 1000000000]",
    "number of training images held out for validation",
    PAPER,
  ),
  Option(
    "data.seed",
    int,
    42,
    "[0, 4294967295]",
    "seed of data.fraction and data.validation; `seed` does not affect them",
    RELEASE,
  ),
  Option(
    "data.image_size", int, None, "[1, 4096]", "side of the squares that images are resized to"
  ),
  Option(
    "data.normalise_as",
    str,
    "",
    "",
    "dataset whose mean and std to use; by default this dataset's own",
  ),
  Option(
    "data.memory_limit",
    int,
    4 * 2**30,
    "[0, 1e15]",
    "size in bytes above which a dataset is streamed",
  ),
  Option(
    "data.corrupt",
    str,
    "stop",
    ("stop", "skip"),
    "whether a corrupt image stops the run or is left out",
  ),
  Option("network", str, "resnet32", "", "its name, or package.module:Name of a Flax module"),
  Option("network_options", dict, {}, "", "keyword arguments of the network's constructor"),
  Option(
    "init_from", str, "", "", "finished run whose weights to start from, DIR:READER@WHICH"
  ),
  Option("method.name", str, "okdph", "", "the method; its options are method.NAME"),
  Option(
    "wrappers",
    tuple,
    (),
    "",
    "around the method, innermost first: ({'name':'sam','rho':0.05},)",
  ),
  Option(
    "views",
    tuple,
    ("hflip",),
    "",
    "augmentations: one per network, or a single one for all",
    "supplement",
  ),
  Option(
    "views_on",
    str,
    "device",
    ("device", "host"),
    "where views are computed: within the step, or in advance by the host's CPU",
  ),
  Option("test_view", str, "plain", "", "view of the images in evaluations", PAPER),
  Option(
    "teacher",
    str,
    "",
    "",
    "for kd: a finished run, DIR:READER@WHICH, or a ResNet in FILE.safetensors or FILE.onnx",
  ),
  Option(
    "teacher_network",
    str,
    "",
    "",
    "of the teacher: resnet18, resnet34 or resnet50 for a file, package.module:Name for a run",
  ),
  Option(
    "generations",
    int,
    1,
    "[1, 1000]",
    "of self-distillation with kd: each one teaches the next",
  ),
  Option("batch_size", int, 128, COUNT, "images per step", PAPER),
  Option(
    "accumulate", int, 1, COUNT, "number of parts that a batch is computed in, to save memory"
  ),
  Option(
    "batch_norm_images",
    int,
    None,
    COUNT,
    "images per batch-normalisation statistic; by default the whole batch, or part of it",
  ),
  Option(
    "compute",
    str,
    "float32",
    ("float32", "bfloat16"),
    "precision of convolutions and dense layers in training",
  ),
  Option(
    "learning_rate", float, 0.1, "[1e-30, 1e30]", "of SGD, before the first milestone", PAPER
  ),
  Option("momentum", float, 0.9, "[0, 1)", "of SGD", PAPER),
  Option("nesterov", bool, False, "", "use Nesterov momentum", RELEASE),
  Option("weight_decay", float, 5e-4, "[0, 100]", "L2 penalty on every parameter", PAPER),
  Option("epochs", int, 300, COUNT, "passes over the training set", PAPER),
  Option(
    "milestones",
    tuple,
    (150, 225),
    "",
    'learning rate x0.1 at these epochs of 300, scaled with epochs; "40 epochs" is not scaled',
    PAPER,
  ),
  Option("eval_every_epochs", int, 1, COUNT, "epochs between evaluations", RELEASE),
  Option(
    "snapshots",
    int,
    0,
    COUNT_OR_NONE,
    "epochs between copies of the weights for okdph analysis; 0: none",
  ),
  Option(
    "log_every_steps", int, 0, COUNT_OR_NONE, "steps between lines of training.jsonl; 0: none"
  ),
  Option("checkpoint_every_minutes", float, 10.0, "[0, 1e6]", "minutes between checkpoints"),
  Option("steps_per_dispatch", int, 1, "[1, 1000]", "steps per call of the compiled program"),
  Option(
    "student_groups",
    int,
    1,
    "[1, 4096]",
    "groups of devices that the students are divided among",
  ),
  Option(
    "devices",
    int,
    None,
    "[1, 4096]",
    "number of devices to use; on a CPU by default one per core, up to 4, but one for networks "
    "of 8 million parameters or more",
  ),
)
BY_NAME = {option.name: option for option in OPTIONS}
DEFAULTS = {option.name: option.default for option in OPTIONS}


def table(values: Mapping[str, Any] | None = None, tablefmt: str = "github") -> str:
  """The options as a table, with the defaults, or with `values` {name: value}."""

  def shown(value):
    return "" if value is None else str(value).replace(" ", "") if value != "" else '""'

  def row(option):
    bounds = option.bounds
    bounds = " or ".join(bounds) if isinstance(bounds, tuple) else bounds
    return option.name, shown((values or DEFAULTS)[option.name]), option.kind.__name__, bounds

  rows = [(*row(option), option.meaning, option.source) for option in OPTIONS]
  headers = ("option", "value" if values else "default", "type", "bounds", "meaning", "source")
  return tabulate(rows, headers, tablefmt=tablefmt, disable_numparse=True)
