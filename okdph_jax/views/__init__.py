"""Views: what each network sees of a batch, one augmentation per network, on the device."""

import jax
import jax.numpy as jnp

from okdph_jax.views import ops
from okdph_jax.views.spec import VIEWS, parse


def make(specs, mean, std):
  """From the batch to one normalised view of it per spec: `augment(key, image)`.

  specs: V strings, see `spec`; mean, std: one number per channel.
  `augment` maps uint8 [B, H, W, C], or [V, B, H, W, C] where the source has cropped per
  view, to float32 [V, B, H, W, C]. Image b of view v draws from
  `fold_in(fold_in(key, v), b)`, whatever the devices. The test images are
  `make(("plain",), mean, std)`. Raises ValueError for a spec that is not a view.
  """
  if isinstance(specs, str):
    raise ValueError(f"views are a tuple of specs, one per network: ({specs!r},)")
  views = [jax.vmap(view(spec, mean, std)) for spec in specs]

  def augment(key, image):
    if image.ndim == 4:
      image = [image] * len(views)
    if len(image) != len(views):
      raise ValueError(f"{len(views)} views of a batch that was cropped for {len(image)}")
    seen = []
    for v, (look, pixels) in enumerate(zip(views, image, strict=True)):
      fold = jax.vmap(jax.random.fold_in, (None, 0))
      keys = fold(jax.random.fold_in(key, v), jnp.arange(pixels.shape[0]))
      seen.append(look(keys, pixels))
    return jnp.stack(seen)

  return augment


def view(spec, mean, std):
  """One view of one image: `(key, uint8 [H, W, C]) -> float32 [H, W, C]`, normalised."""
  pixel, after = parse(spec)
  return ops.chain(*pixel, normalise(mean, std), *after)


def normalise(mean, std):
  """(x / 255 - mean) / std, per channel, as an op."""
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)

  def op(key, image):
    del key
    if mean.shape != image.shape[-1:] or std.shape != image.shape[-1:]:
      raise ValueError(
        f"mean and std have {mean.size} and {std.size} channels, the images {image.shape[-1]}"
      )
    return (image / jnp.float32(255) - mean) / std

  return op


__all__ = ["VIEWS", "make", "normalise", "parse", "view"]
