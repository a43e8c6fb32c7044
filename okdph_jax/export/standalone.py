"""Classes of pictures by model.onnx, without JAX:  python predict.py PICTURE ...

Needs NumPy, onnxruntime and, for pictures, Pillow. model.json says what the network takes.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


@functools.cache
def about():
  """What model.json says."""
  return json.loads((HERE / "model.json").read_text(encoding="utf-8"))


@functools.cache
def session():
  import onnxruntime

  providers = ["CPUExecutionProvider"]
  return onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=providers)


def probabilities(images):
  """uint8 [B, H, W, C], values from 0 to 255 -> float32 [B, K], in the order of the classes."""
  logits = np.asarray(session().run(None, {"images": images})[0])
  odds = np.exp(logits - logits.max(-1, keepdims=True))
  return odds / odds.sum(-1, keepdims=True)


def decoded(path):
  """A picture in 8 bits, as in training: turned by its EXIF data, pasted on white."""
  from PIL import Image, ImageOps

  image = ImageOps.exif_transpose(Image.open(path))
  if image.mode.startswith("I"):  # 16 bits
    image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image


def pixels(path):
  """A picture as the network takes it: uint8 [H, W, C]."""
  from PIL import Image, ImageOps

  _, height, width, channels = about()["input"]["shape"]
  image = decoded(path).convert("L" if channels == 1 else "RGB")
  scale = about()["input"]["resize"]["shorter_side"] / min(width, height)
  size = round(width * scale), round(height * scale)
  image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)  # resizes, cuts off the sides
  left, top = (image.width - width) // 2, (image.height - height) // 2
  image = image.crop((left, top, left + width, top + height))
  return np.asarray(image).reshape(height, width, channels)


if __name__ == "__main__":
  for name in sys.argv[1:]:
    (row,) = probabilities(pixels(name)[None])
    best = np.argsort(-row)[:5]
    print(name, *(f"{about()['classes'][k]} {row[k]:.1%}" for k in best), sep="  ")
