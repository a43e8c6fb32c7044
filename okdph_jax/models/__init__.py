"""The networks by name, one line each, and a user's own by dotted path."""

import importlib
import inspect
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from okdph_jax.errors import nearest
from okdph_jax.models import densenet, mobilenet, resnet, vgg
from okdph_jax.models.net import Net

NETS = {  # name -> constructor(classes)
  # the paper's, as its release builds them
  "resnet32": resnet.resnet32,
  "resnet110": resnet.resnet110,
  "vgg16": vgg.vgg16,
  "densenet40_12": densenet.densenet40_12,
  "wrn20_8": resnet.wrn20_8,
  "resnet18": resnet.resnet18,
  # their families
  "resnet8": resnet.resnet8,
  "resnet20": resnet.resnet20,
  "resnet44": resnet.resnet44,
  "resnet56": resnet.resnet56,
  "resnet34": resnet.resnet34,
  "resnet50": resnet.resnet50,
  "mobilenet_v1": mobilenet.mobilenet_v1,
  # the textbooks'
  "resnet110_basic": resnet.resnet110_basic,
  "wrn_16_2": resnet.wrn_16_2,
  "wrn_28_10": resnet.wrn_28_10,
  "wrn_40_2": resnet.wrn_40_2,
  "densenet40_12_plain": densenet.densenet40_12_plain,
  # offline distillation's pairs
  "resnet8x4": resnet.resnet8x4,
  "resnet32x4": resnet.resnet32x4,
  "vgg8": vgg.vgg8,
  "vgg13": vgg.vgg13,
}


def build(name, classes):
  """The network `name` for `classes` classes: from NETS, or a Linen module by dotted path.

  "my_pkg.nets:SmallNet" is called as SmallNet(classes=classes) and must map
  (x [B, H, W, C], train) -> logits [B, K]; batch statistics are optional.

  Raises:
    ValueError: in one line, where there is no such network.
  """
  if name in NETS:
    return NETS[name](classes)
  if ":" not in name:
    raise ValueError(
      f"unknown network {name!r}{nearest(name, NETS)} (there are {', '.join(NETS)}, "
      "or your own Linen module as 'package.module:Name')"
    )
  net = _imported(name)
  try:
    inspect.signature(net).bind(classes=classes)
  except TypeError as error:
    raise ValueError(
      f"network {name!r} cannot be called as {name.split(':')[1]}(classes={classes}): {error}; "
      "give it a field `classes` and defaults for the rest"
    ) from error
  net = net(classes=classes)
  if not isinstance(net, nn.Module):
    raise ValueError(
      f"network {name!r} made a {type(net).__name__}; a flax.linen.Module is needed"
    )
  return net


def _imported(path):
  module, _, attribute = path.partition(":")
  try:
    module = importlib.import_module(module)
  except Exception as error:  # a stranger's module may raise anything
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    raise ValueError(
      f"network {path!r}: {module!r} cannot be imported ({reason}); is it on PYTHONPATH?"
    ) from error
  if not callable(getattr(module, attribute, None)):
    public = [
      n for n, v in vars(module).items() if not n.startswith("_") and isinstance(v, type)
    ]
    raise ValueError(
      f"network {path!r}: {module.__name__!r} has no {attribute!r}; "
      f"its classes are {', '.join(public) or 'none'}"
    )
  return getattr(module, attribute)


def parameters(net, image_shape):
  """How many numbers descent moves in `net` for images [H, W, C]; nothing is computed."""

  def init(key, x):
    return net.init({"params": key, "dropout": key}, x, False)["params"]

  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  leaves = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), image))
  return sum(math.prod(leaf.shape) for leaf in leaves)


__all__ = ["NETS", "Net", "build", "parameters"]
