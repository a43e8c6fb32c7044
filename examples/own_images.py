"""Your own images: a folder per split, in it a folder per class.

This script first writes scikit-learn's handwritten digits as PNG files. Your images may have
different sizes: `data.image_size` makes squares of them.

    python examples/own_images.py

From the command line, the training is

    okdph train --config=digits --config.data.name=folder --config.data.dir=pictures \\
      --config.data.image_size=16 --config.data.validation=100

`../docs/your-own-data.md` explains formats, splits and corrupt files.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import okdph_jax

EPOCHS = 20

digits = load_digits()
for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
  folder = Path("pictures") / ("test" if i % 5 == 4 else "train") / f"digit_{label}"
  folder.mkdir(parents=True, exist_ok=True)
  Image.fromarray((image * 255 / 16).astype("uint8")).resize((24, 24)).save(folder / f"{i}.png")

config = okdph_jax.load_config("digits")
config.epochs = EPOCHS
config.data.name, config.data.dir = "folder", "pictures"
config.data.image_size = 16
config.data.validation = (
  100  # held out of training: they choose the best epoch, not the test set
)
# One view per student and the hybrid's. A mirrored digit is no digit: look before you train,
# `okdph views --config=... --out=views.png`.
config.views = ("crop(2)", "crop(2)|rotate(15)", "crop(2)|cutout(6)")
result = okdph_jax.fit(config, "runs/pictures")

network = okdph_jax.load("runs/pictures")  # the best on validation; needs no data
files = sorted(Path("pictures/test").rglob("*.png"))[::60]
images = np.stack([np.asarray(Image.open(file).resize((16, 16)))[..., None] for file in files])
for file, name, p in zip(
  files, network.predict(images), network.probabilities(images).max(-1), strict=True
):
  print(f"{file}: {name} ({p:.0%})")
