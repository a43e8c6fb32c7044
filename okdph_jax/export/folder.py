"""Exports a network of a run: a folder of files, each compared with the checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from okdph_jax.data import Split
from okdph_jax.data.pictures import evaluation_side
from okdph_jax.errors import one_line
from okdph_jax.export.formats import FORMATS
from okdph_jax.export.model import ABOUT, digest
from okdph_jax.run import BEST_TEST, BEST_VALIDATION, LAST, Run
from okdph_jax.trained_network import TrainedNetwork

WEIGHTS = "safetensors"
TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order differ by less
INT8_AGREEMENT = 0.9  # of the images keep their class when rounded to 8 bits
CALIBRATION = 256  # training images, from which int8 takes its ranges
CHOSEN_ON = {LAST: None, BEST_VALIDATION: "validation", BEST_TEST: "test"}


class Comparison(NamedTuple):
  """A file's logits compared with those of the checkpoint, on the same images."""

  max_difference: float  # of a logit
  tolerance: float | None  # of max_difference; None for int8
  agreement: float  # the fraction of images with the same most probable class


def export(
  workdir: str | os.PathLike[str],
  out: str | os.PathLike[str] | None = None,
  *,
  reader: str | None = None,
  which: str | None = None,
  network: str | None = None,
  formats: Sequence[str] = ("stablehlo", "onnx", "tflite"),
  int8: bool = False,
  images: int = 256,
  data: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Path]:
  """Exports a network of the run in `workdir`: (the content of model.json, the folder).

  out: the folder, by default `workdir`/export. An earlier export in it is replaced.
  reader, which, network: as in `Run.network`.
  formats: keys of `FORMATS`; the weights are always written as safetensors.
  int8: also write ONNX and TFLite with 8-bit weights and activations.
  images: the number of test images on which every file is compared with the checkpoint.
  data: options of `config.data` that differ from the run's, such as `dir`.

  Raises:
    ValueError: in one line, if the network cannot be exported, or the logits of a file differ
      from the checkpoint's by more than the tolerance; then nothing has been written.
  """
  from okdph_jax.experiment.evaluation import dataset_for  # configs come with it

  run = Run(workdir)
  out = Path(out or run.path / "export")
  formats = _checked(formats, int8)
  _refuse_others(out)
  trained = run.network(reader, which, network)
  about = describe(run, trained, which)  # now: a run that trains on has other checkpoints soon
  dataset, test = dataset_for(run, data)
  real = spread(test, images)
  about["compared"] = {"images": len(real), "of": f"{dataset.name}, test"}
  if test.streamed:
    about["input"]["resize"]["shorter_side"] = evaluation_side(trained.image_shape[0])
  with _replacing(out) as folder:
    files = write(trained, folder, formats, real, spread(dataset.train, CALIBRATION))
    about["files"] = files
    text = json.dumps(about, indent=2, ensure_ascii=False)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
    if "onnx" in formats:
      shutil.copy(Path(__file__).with_name("standalone.py"), folder / "predict.py")
  return about, out


def _checked(formats, int8):
  """The formats to write, in the order of FORMATS; ValueError if one is not available."""
  floats = [name for name in FORMATS if not FORMATS[name].int8]
  for name in formats:
    if name not in floats:
      raise ValueError(f"there is no format {name!r} (there are {', '.join(floats)})")
  rounded = [f"{name}-int8" for name in formats if f"{name}-int8" in FORMATS]
  if int8 and not rounded:
    raise ValueError("int8 is for onnx and tflite; --formats has neither")
  chosen = [name for name in FORMATS if name in formats or (int8 and name in rounded)]
  for name in chosen:
    FORMATS[name].check_installed()
  if importlib.util.find_spec("safetensors") is None:
    raise ValueError("the weights need safetensors: pip install '.[export]' in a checkout")
  return chosen


def describe(run: Run, trained: TrainedNetwork, which: str | None) -> dict[str, Any]:
  """The content of model.json without the files: network, accuracy, input and output."""
  config = run.require_config()
  which, step = run.chosen(which)
  reader = trained.origin.split()[0]
  line = next((x for x in run.lines if x["step"] == step), {"accuracy": {}})
  height, width, channels = trained.image_shape
  accuracy = {split: values.get(reader) for split, values in line["accuracy"].items() if values}
  return {
    "name": f"{reader} of the {config['network']}, step {step} ({which})",
    "network": config["network"],
    "network_options": config["network_options"],
    "reader": reader,
    "step": step,
    "epoch": line.get("epoch"),
    "accuracy": accuracy,  # of the reader at this step, as fractions
    "chosen_on": CHOSEN_ON[which],  # the split by which the checkpoint was chosen
    "classes": list(trained.class_names),
    "input": {
      "name": "images",
      "layout": "NHWC",
      "shape": ["batch", height, width, channels],
      "dtype": "uint8",
      "range": [0, 255],
      "channels": {1: "grey", 3: "RGB"}.get(channels, str(channels)),
      "normalisation": {
        "inside": True,  # the files take raw pixels
        "of": "x / 255",
        "mean": list(trained.mean),
        "std": list(trained.std),
      },
      "resize": {  # before the file: the shorter side, then the centre
        "shorter_side": min(height, width),
        "centre": [height, width],
        "filter": "bilinear, antialiased",
      },
    },
    "output": {"name": "logits", "shape": ["batch", len(trained.class_names)]},
    "versions": {
      name: importlib.metadata.version(name) for name in ("okdph_jax", "jax", "flax")
    },
    "config": config,
  }


def write(
  trained: TrainedNetwork,
  folder: Path,
  formats: Sequence[str],
  images: UInt8[np.ndarray, "N H W C"],
  calibration: UInt8[np.ndarray, "M H W C"],
) -> dict[str, dict[str, Any]]:
  """Writes the files, and compares each with the network: {format: its entry in model.json}.

  Raises:
    ValueError: in one line, if a file differs by more than the tolerance.
  """
  expected = dataclasses.replace(trained, test_view="plain")(images)
  files = {WEIGHTS: _write_weights(trained, folder)}
  for name in formats:
    kind = FORMATS[name]
    path = folder / kind.file
    try:
      kind.write(trained, path, calibration)
      logits = kind.open(path, None)(images)
    except ValueError:
      raise
    except Exception as error:  # of a converter or a runtime
      raise ValueError(f"{kind.file} cannot be made: {one_line(error)}") from error
    found = compare(logits, expected, kind.int8)
    if found.tolerance is not None and not found.max_difference <= found.tolerance:
      raise ValueError(
        f"{kind.file} differs from the checkpoint by up to {found.max_difference:.2g} in a "
        f"logit on {len(images)} images, more than {found.tolerance:.2g}; nothing has been "
        "written"
      )
    if kind.int8 and not found.agreement >= INT8_AGREEMENT:
      raise ValueError(
        f"{kind.file} gives {found.agreement:.0%} of {len(images)} images the class that the "
        f"checkpoint gives them, less than {INT8_AGREEMENT:.0%}; nothing has been written: "
        "export without --int8"
      )
    files[name] = _file(path) | found._asdict()
  return files


def compare(logits: np.ndarray, expected: np.ndarray, int8: bool = False) -> Comparison:
  """Compares logits [B, K] with those of the checkpoint."""
  tolerance = None if int8 else TOLERANCE * max(1.0, float(np.abs(expected).max()))
  difference = float(np.abs(logits - expected).max())
  return Comparison(
    difference, tolerance, float((logits.argmax(-1) == expected.argmax(-1)).mean())
  )


def _write_weights(trained, folder):
  """Writes the Linen variables as in the checkpoint, and checks them by reading them again."""
  from safetensors import numpy as safetensors

  path = folder / "model.safetensors"
  weights = named_weights(trained.variables)
  path.write_bytes(safetensors.save(weights))
  again = safetensors.load_file(path)
  if {n: (x.dtype, x.tobytes()) for n, x in again.items()} != {
    n: (x.dtype, x.tobytes()) for n, x in weights.items()
  }:
    raise ValueError(f"{path.name} does not contain the weights that were written to it")
  return _file(path) | Comparison(0.0, 0.0, 1.0)._asdict()


def named_weights(variables: Any) -> dict[str, np.ndarray]:
  """{"params/stem/.../kernel": array}, as the safetensors file names them."""
  leaves, _ = jax.tree.flatten_with_path(variables)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.ascontiguousarray(leaf)
    for path, leaf in leaves
  }


def _file(path):
  return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest(path)}


def spread(split: Split, count: int) -> UInt8[np.ndarray, "N H W C"]:
  """`count` images at equal distances, because folders are sorted by class."""
  chosen = np.unique(np.linspace(0, len(split) - 1, count).astype(int))
  return split[chosen].first(len(chosen))


def _refuse_others(out):
  """Raises ValueError if `out` exists and is not an export."""
  if out.is_dir() and any(out.iterdir()) and not (out / ABOUT).is_file():
    raise ValueError(f"{out} is not empty and not an exported network; choose another --out")
  if out.exists() and not out.is_dir():
    raise ValueError(f"{out} is a file; choose another --out")


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
  """Yields a new folder, which replaces `out` if the body succeeds."""
  fresh, old = (out.with_name(f".{out.name}.{os.getpid()}.{age}") for age in ("new", "old"))
  fresh.mkdir(parents=True)
  try:
    yield fresh
    if out.exists():
      out.rename(old)
    fresh.rename(out)
  finally:
    for folder in (fresh, old):
      shutil.rmtree(folder, ignore_errors=True)
