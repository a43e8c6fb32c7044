"""Models for prediction: an exported folder, in any of its formats, or a network of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps
from scipy.special import softmax

from okdph_jax.data import pictures
from okdph_jax.export.formats import FORMATS, Logits
from okdph_jax.run import Run

ABOUT = "model.json"
CHECKPOINT = "checkpoint"  # the format of a run that was not exported
LARGEST_BATCH = 64  # images


class Model(NamedTuple):
  """Images in, classes out.

  >>> model = load(workdir)
  >>> model.probabilities(images).shape
  (16, 3)
  """

  name: str  # which network, and in which format
  logits: Logits  # uint8 [B, H, W, C] -> float32 [B, K]
  class_names: tuple[str, ...]
  image_shape: tuple[int, ...]  # (H, W, C)
  shorter_side: int | None  # to which a picture is resized before its centre is cut out

  def probabilities(self, images: UInt8[np.ndarray, "B H W C"]) -> Float32[np.ndarray, "B K"]:
    """The softmax of the logits."""
    return softmax(self.logits(images), axis=-1)

  def picture(self, name: str, content: bytes | Path) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of a picture, resized and cropped as in the run's evaluation.

    Raises:
      ValueError: in one line with its name, if it is not a picture.
    """
    height, width, channels = self.image_shape
    image = pictures.decode(name, content, channels)
    if self.shorter_side not in (None, min(height, width)):
      return pictures.pixels(pictures.evaluation_crop(image, height))
    return pictures.pixels(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))

  def predictions(
    self, images: Sequence[UInt8[np.ndarray, "H W C"]], top: int
  ) -> Iterator[list[tuple[str, float]]]:
    """For each image its `top` most probable (class, probability)."""
    for start in range(0, len(images), LARGEST_BATCH):
      for row in self.probabilities(np.stack(images[start : start + LARGEST_BATCH])):
        order = np.argsort(-row, kind="stable")[:top]
        yield [(self.class_names[k], float(row[k])) for k in order]


def load(
  path: str | os.PathLike[str],
  format: str | None = None,
  reader: str | None = None,
  which: str | None = None,
  network: str | None = None,
  threads: int | None = None,
) -> Model:
  """The model in an exported folder, or one of the networks of a run.

  format: a key of `FORMATS`; by default ONNX if it was exported.
  reader, which, network: of a run, as in `Run.network`.
  threads: of the runtime; by default all cores.

  Raises:
    ValueError: in one line, if there is no such model.
  """
  folder = Path(path)
  if not (folder / ABOUT).is_file():
    return _of_run(folder, format, reader, which, network)
  if reader or which or network:
    raise ValueError(
      f"{folder} is an exported network; --reader, --which and --network choose one of a run"
    )
  about = described(folder)
  there = about["files"]
  choices = [name for name in dict.fromkeys(("onnx", *FORMATS)) if name in there]
  format = format or next(iter(choices), None)
  if format not in choices:
    raise ValueError(f"{folder} has no format {format!r} (there are {', '.join(choices)})")
  kind, file = FORMATS[format], folder / there[format]["file"]
  kind.check_installed()
  if digest(file) != there[format]["sha256"]:
    raise ValueError(f"{file} is not the file that was exported; export the network again")
  return Model(
    name=f"{about['name']}, {format}",
    logits=kind.open(file, threads),
    class_names=tuple(about["classes"]),
    image_shape=tuple(about["input"]["shape"][1:]),
    shorter_side=about["input"]["resize"]["shorter_side"],
  )


def described(folder: Path) -> dict[str, Any]:
  """The content of model.json in an exported folder; ValueError, in one line, if damaged."""
  path = folder / ABOUT
  try:
    about = json.loads(path.read_text(encoding="utf-8"))
    return {name: about[name] for name in ("name", "classes", "input", "files")} | about
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} does not describe an exported network: {error}") from error


def formats(path: str | os.PathLike[str]) -> list[str]:
  """The formats of an exported folder or a run that `load` can open."""
  if not (Path(path) / ABOUT).is_file():
    return [CHECKPOINT]
  there = described(Path(path))["files"]
  return [name for name in FORMATS if name in there]


def digest(path: Path) -> str:
  """The SHA-256 of a file, hexadecimal."""
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except FileNotFoundError:
    raise ValueError(f"{path} is missing; export the network again") from None


def _of_run(folder, format, reader, which, network):
  if not folder.is_dir():
    raise ValueError(f"there is no folder {folder}; name an exported network or a run")
  if format not in (None, CHECKPOINT):
    raise ValueError(
      f"{folder} is a run; to have the format {format}, export it: okdph export "
      f"--workdir={folder}"
    )
  run = Run(folder)
  trained = run.network(reader, which, network)
  shape, streamed = trained.image_shape, (run.record or {}).get("streamed", False)
  side = pictures.evaluation_side(shape[0]) if streamed else None
  return Model(trained.origin, trained, trained.class_names, shape, side)
