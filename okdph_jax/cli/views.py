"""A picture of what each network sees.

    python -m okdph_jax.cli.views --config=configs/cifar10.py --out=views.png

A row per image, the first of the training set; the original, then a column per view.
"""

import sys

import jax
import matplotlib
import numpy as np
from absl import flags
from ml_collections import config_flags

from okdph_jax import data, views

ROWS = 8


def main(arguments):
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    "config", None, flag_values=values, sys_argv=["views", *arguments]
  )
  out = flags.DEFINE_string("out", "views.png", "the picture to write", flag_values=values)
  try:
    rest = values(["views", *arguments])[1:]
    if rest or config.value is None:
      raise ValueError("write --config=configs/FILE.py --out=views.png")
    draw(config.value, out.value)
  except Exception as error:  # absl, ml_collections and the config file raise what they like
    print(f"okdph_jax.views: {str(error).splitlines()[-1].strip()}", file=sys.stderr)
    return 2
  print(out.value)
  return 0


def draw(config, path):
  """Writes the picture of `config`'s views of its first training images to `path`."""
  dataset = data.load(config)
  images = dataset.train.first(ROWS)
  augment = views.make(config.views, dataset.mean, dataset.std)
  seen = np.asarray(jax.jit(augment)(jax.random.key(config.seed), images))
  seen = (seen * np.float32(dataset.std) + np.float32(dataset.mean)).clip(0, 1)

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


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
