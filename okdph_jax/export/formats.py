"""The formats of an exported network: how each is written, and opened by its own runtime."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

if TYPE_CHECKING:
  from okdph_jax.trained_network import TrainedNetwork

Images = UInt8[np.ndarray, "B H W C"]
Logits = Callable[[Images], Float32[np.ndarray, "B K"]]


class Format(NamedTuple):
  """One format of a file.

  write: (network, path, calibration images); ValueError if the network cannot be converted.
  open: (path, threads or None) -> logits(images), computed by the format's own runtime.
  """

  file: str
  write: Callable[[TrainedNetwork, Path, Images], None]
  open: Callable[[Path, int | None], Logits]
  packages: tuple[str, ...]  # modules that writing and opening it import
  int8: bool = False

  def check_installed(self) -> None:
    """Raises ValueError, in one line, if a package is missing."""
    missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
    if missing:
      raise ValueError(
        f"{self.file} needs {', '.join(missing)}: pip install '.[export]' in a checkout"
      )


# StableHLO.


def _write_stablehlo(network, path, calibration):
  import jax
  from jax import export

  program = _program(network)
  images = jax.ShapeDtypeStruct(program.image.shape, program.image.dtype)
  exported = export.export(jax.jit(program), platforms=("cpu", "cuda", "tpu"))(images)
  path.write_bytes(exported.serialize())


def _open_stablehlo(path, threads):
  import jax
  from jax import export

  del threads  # XLA uses those of the process
  call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
  return lambda images: np.asarray(call(images))


# ONNX.


def _write_onnx(network, path, calibration):
  from okdph_jax.export import to_onnx

  path.write_bytes(to_onnx.convert(_program(network)).SerializeToString())


def _write_onnx_int8(network, path, calibration):
  from onnxruntime import quantization

  whole = path.with_suffix(".float")
  _write_onnx(network, whole, calibration)
  batches = iter([{"images": image[None]} for image in calibration])

  class Reader(quantization.CalibrationDataReader):
    def get_next(self) -> dict:
      return next(batches, None)  # pyright: ignore[reportReturnType]

  logging.disable(logging.WARNING)  # it recommends a preprocessing that is not needed here
  try:
    quantization.quantize_static(whole, path, Reader(), per_channel=True)
  finally:
    logging.disable(logging.NOTSET)
    whole.unlink()


def _open_onnx(path, threads):
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads or 0
  options.log_severity_level = 3
  session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
  return lambda images: np.asarray(session.run(None, {"images": images})[0])


# TFLite.


def _write_tflite(network, path, calibration):
  from okdph_jax.export import to_tflite

  path.write_bytes(to_tflite.convert(_program(network, 1)))


def _write_tflite_int8(network, path, calibration):
  from okdph_jax.export import to_tflite

  path.write_bytes(to_tflite.convert(_program(network, 1), calibration))


def _open_tflite(path, threads):
  from okdph_jax.runtime import host

  with host.silent():  # it prints when it is imported
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads or host.cores())
    interpreter.allocate_tensors()
  (image,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

  def logits(images):
    rows = []
    for i in range(len(images)):
      interpreter.set_tensor(image["index"], images[i : i + 1])
      interpreter.invoke()
      rows.append(interpreter.get_tensor(result["index"]))
    return np.concatenate(rows)

  return logits


def _program(network, batch=None):
  from okdph_jax.export import folding, program

  return folding.fold(program.trace(network, batch))


FORMATS = {
  "stablehlo": Format("model.stablehlo", _write_stablehlo, _open_stablehlo, ("jax",)),
  "onnx": Format("model.onnx", _write_onnx, _open_onnx, ("onnx", "onnxruntime")),
  "tflite": Format(
    "model.tflite", _write_tflite, _open_tflite, ("tensorflow", "ai_edge_litert")
  ),
  "onnx-int8": Format(
    "model.int8.onnx", _write_onnx_int8, _open_onnx, ("onnx", "onnxruntime"), int8=True
  ),
  "tflite-int8": Format(
    "model.int8.tflite",
    _write_tflite_int8,
    _open_tflite,
    ("tensorflow", "ai_edge_litert"),
    int8=True,
  ),
}
