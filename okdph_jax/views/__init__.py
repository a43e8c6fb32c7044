"""Views: the augmentations of a batch, one per network, computed on the device."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from okdph_jax.views import ops
from okdph_jax.views.spec import VIEWS, parse


def make(
  specs: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Callable[..., Float[Array, "V B H W C"]]:
  """`augment(key, image)`, which computes one normalised view of a batch per spec.

  specs: V strings, see `okdph_jax.views.spec`. mean, std: one number per channel.
  image: [B, H, W, C], or [V, B, H, W, C] if it was cropped for each view already. Image b of
  view v uses the key `fold_in(fold_in(key, v), b)`, on any number of devices. For a part of a
  batch, `augment(key, image, position)` takes the positions b of its images, int [B].

      >>> augment = make(("flip", "crop(1)|cutout(3)"), mean=(0.5,), std=(0.25,))
      >>> augment(jax.random.key(0), jnp.zeros((4, 8, 8, 1), jnp.uint8)).shape
      (2, 4, 8, 8, 1)

  Raises:
    ValueError: for an invalid spec; in `augment` for one that does not fit the images.
  """
  if isinstance(specs, str):
    raise ValueError(f"views must be a tuple of specs, one per network: ({specs!r},)")
  views = [jax.vmap(view(spec, mean, std)) for spec in specs]

  def augment(key, image, position=None):
    if image.ndim == 4:
      image = [image] * len(views)
    if len(image) != len(views):
      raise ValueError(f"there are {len(views)} views, but {len(image)} crops of each image")
    augmented = []
    for v, (apply, pixels) in enumerate(zip(views, image, strict=True)):
      fold = jax.vmap(jax.random.fold_in, (None, 0))
      at = jnp.arange(pixels.shape[0]) if position is None else position
      keys = fold(jax.random.fold_in(key, v), at)
      augmented.append(apply(keys, pixels))
    return jnp.stack(augmented)

  return augment


def check(specs: Sequence[str], image_shape: Sequence[int]) -> None:
  """Raises ValueError, in one line, for a view that does not fit images [H, W, C].

  Only shapes are computed.
  """
  channels = image_shape[-1]
  augment = make(specs, [0.0] * channels, [1.0] * channels)
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
  jax.eval_shape(lambda image: augment(jax.random.key(0), image), image)


def view(spec: str, mean: Sequence[float], std: Sequence[float]) -> ops.Op:
  """The op of a spec: `(key, uint8 [H, W, C]) -> float32 [H, W, C]`, normalised."""
  pixel, after = parse(spec)
  return ops.chain(*pixel, normalise(mean, std), *after)


def normalise(mean: Sequence[float], std: Sequence[float]) -> ops.Op:
  """(x / 255 - mean) / std, per channel, as an op."""
  shift, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)

  def op(key, image):
    del key
    channels = image.shape[-1:]
    if shift.shape != channels or scale.shape != channels:
      raise ValueError(
        f"mean and std have {shift.size} and {scale.size} channels, images have {channels[0]}"
      )
    return (image / jnp.float32(255) - shift) / scale

  return op


__all__ = ["VIEWS", "check", "make", "normalise", "parse", "view"]
