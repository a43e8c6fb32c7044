"""`okdph views`: a picture of what each network sees."""

from typing import TYPE_CHECKING

from okdph_jax.cli.arguments import Parser, command, split_options

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from okdph_jax.data import Dataset

ROWS = 8
DESCRIPTION = """\
Draws what each network sees: a row per training image, with the original and then a column per
view, named after the network that is trained on it.

  okdph views --config=cifar10 --out=views.png
  okdph views --config=cifar10:dml,resnet32 --out=views.pdf
"""


@command
def main(arguments: list[str]) -> int:
  spec, overrides, rest = split_options(arguments)
  parser = Parser("views", DESCRIPTION)
  parser.add_argument(
    "--config",
    metavar="NAME[:ARGUMENT]",
    help="config with the data and views; --config.OPTION=VALUE",
  )
  parser.add_argument(
    "--out", default="views.png", help="picture to write: .png, .pdf or .svg (%(default)s)"
  )
  flags = parser.parse(rest)
  if spec is None:
    raise ValueError("--config=NAME is needed: okdph views --config=cifar10 --out=views.png")
  from okdph_jax.experiment.config import check, load_config

  config = load_config(spec, overrides)
  check(config)
  draw(config, flags.out)
  print(flags.out)
  return 0


def draw(config: "ConfigDict", path: str) -> None:
  """Writes the picture of what `config`'s networks see of a few training images to `path`."""
  import jax
  import numpy as np

  from okdph_jax import data, views
  from okdph_jax.report import plots

  dataset = data.load(config)
  names = seen_by(config, dataset)
  views.check(config.views, dataset.image_shape)
  examples = dataset.train.examples(ROWS, len(config.views))
  augment = views.make(config.views, dataset.mean, dataset.std)
  seen = np.asarray(jax.jit(augment)(jax.random.key(config.seed), examples.training))
  mean, std = np.asarray((dataset.mean, dataset.std), np.float32)
  seen = (seen * std + mean).clip(0, 1)
  columns = [("original", "", examples.original / 255)]
  columns += zip(names, config.views, seen, strict=True)
  plots.views(columns, [dataset.class_names[label] for label in examples.labels], path)


def seen_by(config: "ConfigDict", dataset: "Dataset") -> list[str]:
  """Which network sees each view; a single view in the config becomes one for each."""
  from okdph_jax import models
  from okdph_jax.experiment.build import check_options, check_views
  from okdph_jax.methods import assemble
  from okdph_jax.methods.protocol import Context

  check_options(config)
  net = models.build(config.network, dataset.classes, config.network_options)
  context = Context(net, dataset.classes, 1, config.epochs, teacher=(net, {}))
  method = assemble(context, config.method, config.wrappers)
  check_views(config, method)
  students = config.method.get("students", 1)
  if method.views == 1:
    return ["every network" if students > 1 else "student_0"]
  more = {"okdph": ["hybrid"], "mean_teacher": ["teacher"]}.get(config.method.name, [])
  return [f"student_{i}" for i in range(students)] + more
