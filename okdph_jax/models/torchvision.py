"""Loads ResNets of torchvision and timm from files of weights.

`resnet18`, `resnet34` and `resnet50` have the same layers here, in torchvision and in timm. A
file is a state dict (.safetensors) or an ONNX model. The convolutions of an ONNX model are
matched by their order in the graph, because exporters rename weights and fold batch
normalisation into them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from okdph_jax.core import Variables
from okdph_jax.models import resnet

NETWORKS = {
  "resnet18": resnet.resnet18,
  "resnet34": resnet.resnet34,
  "resnet50": resnet.resnet50,
}
FILES = (".safetensors", ".onnx")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels / 255, in their training

LEAVES = {  # ours -> PyTorch's
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


class Renormalised(nn.Module):
  """A network for images that are normalised by another mean and std than in its training.

  Greyscale images [B, H, W, 1] become three equal channels.
  """

  net: nn.Module
  scale: tuple[float, ...]
  shift: tuple[float, ...]

  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B K"]:
    return self.net(x * jnp.asarray(self.scale) + jnp.asarray(self.shift), train)


def load(
  path: str | os.PathLike[str], network: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Renormalised, Variables]:
  """(module, variables) of the ResNet in a file, for images normalised by mean and std.

  path: FILE.safetensors or FILE.onnx. network: a name in `NETWORKS`. mean, std: per channel, of
  the images that the module will be applied to; its own are ImageNet's.

  Raises:
    ValueError: in one line, for a file that cannot be read or holds another network.
  """
  if network not in NETWORKS:
    raise ValueError(
      f"{path} holds weights only; name their network, one of {', '.join(NETWORKS)}"
    )
  name = Path(path)
  if not name.is_file():
    raise ValueError(f"there is no file {path}")
  try:
    tensors = _safetensors(name) if name.suffix == ".safetensors" else _onnx(name, network)
  except ImportError as error:
    raise ValueError(f"{path}: {error}; pip install '.[export]' in a checkout") from error
  except ValueError:
    raise
  except Exception as error:  # the libraries raise anything for a file that is not theirs
    raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
  if "fc.bias" not in tensors:
    raise ValueError(f"{path} has no fc.bias: it is not the state dict of a {network}")
  net = NETWORKS[network](len(tensors["fc.bias"]))
  variables = _variables(net, tensors, f"{path} is not a {network}")
  own, given = np.asarray([MEAN, STD]), np.asarray([mean, std])
  scale, shift = given[1] / own[1], (given[0] - own[0]) / own[1]
  module = Renormalised(net, tuple(scale.tolist()), tuple(shift.tolist()))
  return module, {kind: {"net": tree} for kind, tree in variables.items()}


def _shapes(net: nn.Module) -> Variables:
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(lambda: net.lazy_init(jax.random.key(0), image, False))


def _variables(net: nn.Module, tensors: Mapping[str, np.ndarray], wrong: str) -> Variables:
  """The variables of `net` from a state dict."""

  def take(path, leaf):
    name = _name(path)
    if name not in tensors:
      raise ValueError(f"{wrong}: it has no {name}")
    array = np.asarray(tensors[name], np.float32)
    if array.ndim == 4:
      array = array.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
    elif array.ndim == 2:
      array = array.T
    if array.shape != leaf.shape:
      raise ValueError(
        f"{wrong}: {name} is {list(tensors[name].shape)}, {list(array.shape)} in Flax's order; "
        f"it must be {list(leaf.shape)}"
      )
    return array

  return jax.tree_util.tree_map_with_path(take, dict(_shapes(net)))


def _name(path) -> str:
  """PyTorch's name of a leaf: stem/stages_1/Basic_0/Conv_0/kernel -> layer2.0.conv1.weight."""
  *where, layer, leaf = [key.key for key in path[1:]]
  kind, _, index = layer.partition("_")
  if kind == "Dense":
    return f"fc.{LEAVES[leaf]}"
  names = {"Conv": "conv", "BatchNorm": "bn"}
  if where == ["stem", "entry"]:
    return f"{names[kind]}1.{LEAVES[leaf]}"
  *_, stage, block = where
  width, _, number = block.partition("_")
  depth = int(stage.partition("_")[2]) + 1 if "_" in stage else 4  # the last is the branch's
  own = int(index) < {"Basic": 2, "Bottleneck": 3}[width]
  name = f"{names[kind]}{int(index) + 1}" if own else f"downsample.{int(kind == 'BatchNorm')}"
  return f"layer{depth}.{number}.{name}.{LEAVES[leaf]}"


def _safetensors(path: Path) -> dict[str, np.ndarray]:
  from safetensors.numpy import load_file

  return load_file(path)


def _onnx(path: Path, network: str) -> dict[str, np.ndarray]:
  """The state dict of an ONNX model, from its nodes in order."""
  import onnx

  graph = onnx.load(path).graph
  arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}

  def weights(kind: str) -> Iterator[list[np.ndarray]]:
    for node in graph.node:
      if node.op_type == kind:
        if missing := [name for name in node.input[1:] if name not in arrays]:
          raise ValueError(f"{path}: the weights {missing[0]} of a {kind} are not constants")
        yield [arrays[name] for name in node.input[1:]]

  convolutions, norms, dense = (
    list(weights(kind)) for kind in ("Conv", "BatchNormalization", "Gemm")
  )
  leaves = jax.tree_util.tree_leaves_with_path(dict(_shapes(NETWORKS[network](1))))
  names = [_name(key) for key, leaf in leaves if leaf.ndim == 4]
  order = sorted(name.removesuffix(".weight") for name in names)  # as they are computed
  if len(convolutions) != len(order) or len(norms) not in (0, len(order)) or len(dense) != 1:
    raise ValueError(
      f"{path} is not a {network}: it has {len(convolutions)} convolutions, {len(norms)} batch "
      f"normalisations and {len(dense)} dense layers; a {network} has {len(order)}, "
      f"{len(order)} (or 0, if folded into the convolutions) and 1"
    )
  found = {}
  for i, name in enumerate(order):
    norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
    kernel, *bias = convolutions[i]
    if norms:
      scale, shift, mean, var = norms[i]
    else:  # folded: 1e-5, the layer's epsilon, is added to the variance
      one = np.ones(len(kernel), np.float32)
      scale, shift, mean, var = one, bias[0] if bias else 0 * one, 0 * one, one - 1e-5
    entries = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": var}
    found[f"{name}.weight"] = kernel
    found |= {f"{norm}.{leaf}": array for leaf, array in entries.items()}
  (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
  transposed = any(a.name == "transB" and a.i for a in gemm.attribute)
  found["fc.weight"] = dense[0][0] if transposed else dense[0][0].T
  found["fc.bias"] = dense[0][1]
  return found
