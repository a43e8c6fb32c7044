"""A trained network, ready to use: images in, logits or class names out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Key, UInt8
from scipy.special import softmax

from okdph_jax import views
from okdph_jax.core import Variables
from okdph_jax.nn import students

LARGEST_BATCH = 256  # more images are processed in several batches


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
  """A Linen module, its trained variables, and the preprocessing of its images.

      >>> network  # of okdph_jax.load(workdir)
      <student_0 of the resnet8 in ..., step 4 (last): images 8x8x1, 3 classes>
      >>> network(images).shape, network.probabilities(images).shape
      ((16, 3), (16, 3))
      >>> network.predict(images[:2])
      ['...', '...']

  `images` are uint8, as in the dataset; they are normalised as in the run's evaluations. Each
  batch size is compiled once; batches are padded to a power of two, so that few sizes occur.
  """

  module: nn.Module  # module(x [B, H, W, C], train) -> logits [B, K]
  variables: Variables
  class_names: tuple[str, ...]
  image_shape: tuple[int, ...]  # (H, W, C)
  mean: tuple[float, ...]  # per channel, of x / 255
  std: tuple[float, ...]  # likewise
  test_view: str  # the view that evaluation uses, see `okdph_jax.views`
  origin: str  # which network of which run, and at which step
  reader: str = ""  # the network's name in its run: "student_0", "hybrid", ...

  def __repr__(self):
    return f"<{self.origin}: {self.about}>"

  @property
  def about(self) -> str:
    """Image shape and number of classes, in words."""
    shape = "x".join(map(str, self.image_shape))
    return f"images {shape}, {len(self.class_names)} classes"

  def __call__(self, images: UInt8[np.ndarray, "B H W C"]) -> Float32[np.ndarray, "B K"]:
    """The logits; ValueError, in one line, for images of another shape or type."""
    images = self._checked(images)
    starts = range(0, len(images), LARGEST_BATCH)
    parts = [images[start : start + LARGEST_BATCH] for start in starts]
    logits = [
      self._compiled(self._on_device, _padded(part), jax.random.fold_in(jax.random.key(0), i))
      for i, part in enumerate(parts)
    ]
    rows = [np.asarray(z)[: len(part)] for z, part in zip(logits, parts, strict=True)]
    return np.concatenate([np.empty((0, len(self.class_names)), np.float32), *rows])

  def probabilities(self, images: UInt8[np.ndarray, "B H W C"]) -> Float32[np.ndarray, "B K"]:
    """The softmax of the logits."""
    return softmax(self(images), axis=-1)

  def predict(self, images: UInt8[np.ndarray, "B H W C"]) -> list[str]:
    """The name of the most probable class of each image."""
    return [self.class_names[k] for k in self(images).argmax(-1)]

  def apply(
    self,
    variables: Variables,
    images: UInt8[Array, "B H W C"],
    key: Key[Array, ""] | None = None,
  ) -> Float[Array, "B K"]:
    """The logits as a pure function, for `jit`, `grad` and export: no checks, no padding.

    key: for a random test view, such as one with noise; by default a constant.
    """
    key = jax.random.key(0) if key is None else key
    look = views.make((self.test_view,), self.mean, self.std)
    return students.run(self.module, variables, look(key, images)[0])[0]

  def check(self) -> None:
    """Traces the network; ValueError, in one line, if the variables do not fit the module."""
    images = jax.ShapeDtypeStruct((2, *self.image_shape), jnp.uint8)
    try:
      logits = jax.eval_shape(self.apply, self.variables, images)
    except Exception as error:  # a network may raise anything
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise ValueError(f"{self.origin} no longer fits its network: {reason}") from error
    if logits.shape != (2, len(self.class_names)):
      raise ValueError(
        f"{self.origin} returns logits {list(logits.shape)} for 2 images; they must be "
        f"[2, {len(self.class_names)}]"
      )

  @functools.cached_property
  def _compiled(self):
    return jax.jit(self.apply)

  @functools.cached_property
  def _on_device(self):
    return jax.device_put(self.variables)

  def _checked(self, images: Any) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
      shape = ", ".join(map(str, ("B", *self.image_shape)))
      raise ValueError(
        f"images are {images.dtype} {list(images.shape)}; they must be uint8 [{shape}] with "
        "values from 0 to 255"
      )
    return images


def _padded(images):
  size = 1 << (len(images) - 1).bit_length()
  return np.pad(images, [(0, size - len(images))] + [(0, 0)] * (images.ndim - 1))
