"""A program as a TFLite model, by TensorFlow's converter from StableHLO."""

from jaxtyping import UInt8
from numpy import ndarray

from okdph_jax.errors import one_line
from okdph_jax.export.program import Program
from okdph_jax.runtime import host


def convert(program: Program, calibration: UInt8[ndarray, "N H W C"] | None = None) -> bytes:
  """The file's content, for a program of one image: uint8 [1, H, W, C] -> float [1, K].

  With images to calibrate on, weights and activations are rounded to 8 bits.

  Raises:
    ValueError: in one line, for an operation that TFLite does not have.
  """
  with host.silent():  # TensorFlow and its converter log to stderr
    import tensorflow as tf
    from jax.experimental import jax2tf

    host.hide_accelerators(tf)
    logits = tf.function(
      jax2tf.convert(program, with_gradient=False, native_serialization_platforms=["cpu"]),
      input_signature=[tf.TensorSpec(program.image.shape, tf.uint8, name="images")],
      autograph=False,
    )
    concrete = logits.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    if calibration is not None:
      converter.optimizations = [tf.lite.Optimize.DEFAULT]
      converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    try:
      return converter.convert()
    except Exception as error:  # the converter's own kinds
      raise ValueError(f"TFLite: the network cannot be converted: {one_line(error)}") from error
