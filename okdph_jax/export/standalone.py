"""Classes of pictures by model.onnx, without JAX:  python predict.py PICTURE ...

Needs NumPy, onnxruntime and, for pictures, Pillow. model.json says what the network takes.
"""

import contextlib
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

  image = Image.open(path)
  image.load()
  with contextlib.suppress(Exception):  # the EXIF data are corrupt, the pixels are not
    ImageOps.exif_transpose(image, in_place=True)
  if image.mode.startswith(("I", "F")):
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
      raise ValueError(f"{path}: its pixels are not whole numbers of 8 or 16 bits")
    image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image


def pixels(path):
  """A picture as the network takes it: uint8 [H, W, C]."""
  from PIL import Image, ImageOps

  _, height, width, channels = about()["input"]["shape"]
  image = decoded(path).convert("L" if channels == 1 else "RGB")
  side, bilinear = about()["input"]["resize"]["shorter_side"], Image.Resampling.BILINEAR
  if side == min(width, height):
    image = ImageOps.fit(image, (width, height), bilinear)  # resizes, cuts off the sides
  else:
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), bilinear)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
  return np.asarray(image).reshape(height, width, channels)


if __name__ == "__main__":
  bad = 0
  for name in sys.argv[1:]:
    try:
      image = pixels(name)
    except ImportError:
      raise
    except Exception as error:  # Pillow's are of many kinds
      print(f"left out: {name}: {error}", file=sys.stderr)
      bad = 1
      continue
    (row,) = probabilities(image[None])
    best = np.argsort(-row)[:5]
    print(name, *(f"{about()['classes'][k]} {row[k]:.1%}" for k in best), sep="  ")
  sys.exit(bad)
