"""Your own view.

A view is made of operations. An operation is a function that takes its numbers and returns
`(key, image) -> image` for one uint8 image [H, W, C]; every image of every view has its own
key.
Once it is in `PIXEL_OPS`, configs can use it by its name.

    python examples/own_view.py

draws what each network sees into views.png, and trains.
"""

import jax
import jax.numpy as jnp

import okdph_jax
from okdph_jax.cli.views import draw
from okdph_jax.views.spec import PIXEL_OPS

EPOCHS = 20


def brightness(delta: float):
  """Adds a number from U(-delta, delta), the same for all pixels; from 0 to 255."""

  def op(key, image):
    shift = jax.random.uniform(key, (), minval=-delta, maxval=delta)
    return jnp.clip(jnp.round(image + shift), 0, 255).astype(jnp.uint8)

  return op


PIXEL_OPS["brightness"] = brightness

if __name__ == "__main__":
  config = okdph_jax.load_config("digits:okdph,resnet8")
  config.epochs = EPOCHS
  config.views = ("crop(1)", "crop(1)|brightness(60)", "any(brightness(30), crop(1)|cutout(3))")
  draw(config, "views.png")
  result = okdph_jax.fit(config, "runs/own_view")
  print(result.best_single)
