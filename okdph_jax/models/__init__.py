"""All networks by name, and user-defined ones by dotted path."""

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from okdph_jax.errors import nearest
from okdph_jax.models import densenet, mobilenet, resnet, shufflenet, vgg
from okdph_jax.models.net import Net

NETS: dict[str, Callable[..., Net]] = {  # name -> constructor(classes)
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
  # the textbook versions
  "resnet110_basic": resnet.resnet110_basic,
  "wrn_16_2": resnet.wrn_16_2,
  "wrn_28_10": resnet.wrn_28_10,
  "wrn_40_2": resnet.wrn_40_2,
  "densenet40_12_plain": densenet.densenet40_12_plain,
  # teachers and students of offline distillation
  "resnet8x4": resnet.resnet8x4,
  "resnet32x4": resnet.resnet32x4,
  "vgg8": vgg.vgg8,
  "vgg13": vgg.vgg13,
  "resnet18_small": resnet.resnet18_small,
  "mobilenet_v2": mobilenet.mobilenet_v2,
  "shufflenet_v2": shufflenet.shufflenet_v2,
}


def build(name: str, classes: int, options: Mapping[str, Any] | None = None) -> nn.Module:
  """The network `name` for `classes` classes: one of `NETS`, or your own by dotted path.

  "my_pkg.nets:SmallNet" is called as SmallNet(classes=classes, **options) and must map
  (x [B, H, W, C], train) -> logits [B, K]; batch statistics are optional. A Flax NNX module is
  called as SmallNet(classes=classes, **options, rngs=rngs) and wrapped as a Linen module.
  `options` is `config.network_options`.

      >>> net = build("resnet8", classes=10)
      >>> variables = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
      >>> net.apply(variables, jnp.zeros((5, 8, 8, 3)), train=False).shape
      (5, 10)

  Raises:
    ValueError: in one line, for an unknown network, or one that cannot be built.
  """
  options = dict(options or {})
  if name in NETS:
    _check_call(name, NETS[name], options)
    return NETS[name](classes, **options)
  if ":" not in name:
    raise ValueError(
      f"unknown network {name!r}{nearest(name, NETS)} (there are {', '.join(NETS)}, "
      "or your own Flax module as 'package.module:Name')"
    )
  make = _imported(name)
  if isinstance(make, type) and issubclass(make, nnx.Module):
    # The class's own signature is its metaclass's, (*args, **kwargs).
    init = functools.partial(make.__init__, None)  # pyright: ignore[reportArgumentType]
    _check_call(name, init, options, rngs=None)
    return nnx.bridge.ToLinen(make, kwargs={"classes": classes, **options}, metadata_fn=None)
  _check_call(name, make, options)
  net = make(classes=classes, **options)
  if not isinstance(net, nn.Module):
    raise ValueError(
      f"network {name!r} is a {type(net).__name__}; it must be a flax.linen.Module, or the "
      "class of an nnx.Module"
    )
  return net


def _check_call(name, make, options, **given):
  """Raises ValueError, in one line, if `make` cannot be called with the options."""
  signature = inspect.signature(make)
  kinds = {p.kind for p in signature.parameters.values()}
  known = [n for n in signature.parameters if n not in ("classes", "parent", "name", *given)]
  if inspect.Parameter.VAR_KEYWORD not in kinds:
    for option in sorted(options.keys() - set(known)):
      raise ValueError(
        f"network {name!r} has no option {option!r}{nearest(option, known)} (there are "
        f"{', '.join(known) or 'none'})"
      )
  try:
    signature.bind(classes=10, **options, **given)
  except TypeError as error:
    call = ", ".join(["classes=K", *(f"{n}={v!r}" for n, v in options.items()), *given])
    raise ValueError(
      f"network {name!r} cannot be called as {name.split(':')[-1]}({call}): {error}; it must "
      "accept `classes`, the number of classes, and every other argument needs a default or a "
      "value in config.network_options"
    ) from error


def _imported(path):
  module, _, attribute = path.partition(":")
  try:
    module = importlib.import_module(module)
  except Exception as error:  # a user's module may raise anything
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


def parameters(net: nn.Module, image_shape: Sequence[int]) -> int:
  """The number of trainable parameters of `net` for images [H, W, C]; nothing is computed."""

  def init(x):
    key = jax.random.key(0)  # in here, where it starts no backend
    return net.init({"params": key, "dropout": key}, x, False)["params"]

  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  leaves = jax.tree.leaves(jax.eval_shape(init, image))
  return sum(math.prod(leaf.shape) for leaf in leaves)


__all__ = ["NETS", "Net", "build", "parameters"]
