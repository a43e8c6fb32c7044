"""`okdph views`: a picture of what each network sees."""

from typing import TYPE_CHECKING

from okdph_jax.cli.arguments import Parser, command, split_options

if TYPE_CHECKING:
  from ml_collections import ConfigDict

ROWS = 8
DESCRIPTION = """\
A picture of what each network sees: a row per image, the first of the training set; the
original, then a column per view.

  okdph views --config=cifar10 --out=views.png
"""


@command
def main(arguments: list[str]) -> int:
  spec, overrides, rest = split_options(arguments)
  parser = Parser("views", DESCRIPTION)
  parser.add_argument(
    "--config", metavar="NAME[:ARGUMENT]", help="whose data and views; --config.OPTION=VALUE"
  )
  parser.add_argument("--out", default="views.png", help="the picture to write (%(default)s)")
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
  """Writes the picture of `config`'s views of its first training images to `path`."""
  import jax
  import matplotlib
  import numpy as np

  from okdph_jax import data, views

  dataset = data.load(config)
  images = dataset.train.first(ROWS)
  augment = views.make(config.views, dataset.mean, dataset.std)
  seen = np.asarray(jax.jit(augment)(jax.random.key(config.seed), images))
  mean, std = np.asarray((dataset.mean, dataset.std), np.float32)
  seen = (seen * std + mean).clip(0, 1)

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt  # after `use`: else it looks for a screen

  columns = [("original", images / 255), *zip(config.views, seen, strict=True)]
  size = (1.5 * len(columns), 1.45 * len(images) + 0.5)
  figure, axes = plt.subplots(
    len(images), len(columns), figsize=size, squeeze=False, layout="compressed"
  )
  for (title, column), down in zip(columns, axes.T, strict=True):
    if len(title) > 16:
      title = title.replace("|", "|\n").replace(", ", ",\n")
    down[0].set_title(title, fontsize=9)
    for image, axis in zip(column, down, strict=True):
      axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
      axis.set_axis_off()
  figure.savefig(path, dpi=150)
