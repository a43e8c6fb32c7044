"""Programs, folding and formats: the same logits as the network, computed by other runtimes."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import linen as nn
from jax import export, lax

from okdph_jax import models
from okdph_jax.export.folding import fold
from okdph_jax.export.formats import FORMATS
from okdph_jax.export.program import trace
from okdph_jax.export.to_onnx import convert
from okdph_jax.models.ensemble import together
from okdph_jax.trained_network import TrainedNetwork


def trained(module, shape=(8, 8, 1), seed=0):
  """A `TrainedNetwork` with random weights and statistics: none of them 0 or 1."""
  random = np.random.default_rng(seed)
  image, keys = (
    jnp.zeros((1, *shape)),
    {"params": jax.random.key(0), "dropout": jax.random.key(0)},
  )
  shapes = jax.eval_shape(lambda: module.init(keys, image, False))

  def weights(path, leaf):
    if path[-1].key in ("scale", "var"):
      return random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    return random.normal(0, 0.2, leaf.shape).astype(leaf.dtype)

  variables = jax.tree_util.tree_map_with_path(weights, dict(shapes))
  variables = {kind: variables.get(kind, {}) for kind in ("params", "batch_stats")}
  mean, std = (0.4,) * shape[-1], (0.3,) * shape[-1]
  return TrainedNetwork(
    module, variables, tuple("abc"), shape, mean, std, "plain", "net of a test"
  )


def pixels(network, count=3):
  return np.random.default_rng(1).integers(0, 256, (count, *network.image_shape), np.uint8)


def difference(logits, expected):
  assert logits.shape == expected.shape and logits.dtype == np.float32
  return np.abs(logits - expected).max() / np.abs(expected).max()


# Every network in every format.


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("net", ["resnet8", "tests.nets:Small"])
def test_every_format_gives_the_network_s_logits(net, name, tmp_path):
  """`Small` asks for len(x), so that it cannot be traced with any number of images at once."""
  network, kind = trained(models.build(net, 3)), FORMATS[name]
  images = pixels(network)
  kind.write(network, tmp_path / kind.file, pixels(network, 16))
  logits = kind.open(tmp_path / kind.file, 1)
  assert [path.name for path in tmp_path.iterdir()] == [kind.file]
  for count in (3, 1):
    far = difference(logits(images[:count]), network(images[:count]))
    assert far < (0.1 if kind.int8 else 1e-5)
    assert not kind.int8 or far > 1e-4, "not rounded at all"


def onnx_logits(program, images):
  session = onnxruntime.InferenceSession(
    convert(program).SerializeToString(), providers=["CPUExecutionProvider"]
  )
  return session.run(None, {"images": images})[0]


@pytest.mark.parametrize(
  "net, shape",
  [("vgg8", (10, 9, 3)), ("tests.nets:Nnx", (8, 8, 1))],
)
def test_the_families_in_onnx(net, shape):
  """An odd map before a maximum, and a Flax NNX module."""
  network = trained(models.build(net, 3), shape)
  images = pixels(network)
  program = trace(network, 3)
  assert difference(onnx_logits(fold(trace(network)), images), jax.jit(program)(images)) < 1e-4


def test_an_ensemble_is_exported():
  net = models.build("tests.nets:Stateless", 3)
  module, variables = together(net, [trained(net, seed=seed).variables for seed in (0, 1)])
  network = trained(module)
  object.__setattr__(network, "variables", variables)
  images = pixels(network)
  assert difference(onnx_logits(trace(network), images), network(images)) < 1e-5


# StableHLO.


def test_stablehlo_is_for_every_platform_and_has_stock_operations_alone(tmp_path):
  """On a CPU training may use a convolution that other runtimes have no code for."""
  network = trained(models.build("resnet8", 3))
  FORMATS["stablehlo"].write(network, tmp_path / "model", None)
  exported = export.deserialize(bytearray((tmp_path / "model").read_bytes()))
  assert exported.platforms == ("cpu", "cuda", "tpu")
  calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
  assert calls <= {"shape_assertion"}, "of jax.export, on the batch size"
  assert "stablehlo.convolution" in exported.mlir_module()


# Folding.


def names(program):
  return Counter(operation.name for operation in program.operations)


def test_folding_keeps_the_function():
  network = trained(models.build("resnet8", 3))
  program = trace(network, 2)
  folded = fold(program)
  assert names(folded)["conv_general_dilated"] == names(program)["conv_general_dilated"]
  assert len(folded.operations) < len(program.operations)
  assert names(folded)["mul"] == 0, "every normalisation stands behind a convolution"
  images = pixels(network, 2)
  assert (
    difference(np.asarray(jax.jit(folded)(images)), np.asarray(jax.jit(program)(images))) < 1e-5
  )


class Of(nn.Module):
  """A function of the normalised image as a network, its result flattened to logits."""

  function: object

  @nn.compact
  def __call__(self, x, train):
    y = self.function(x)
    return y.reshape(x.shape[0], -1).astype(jnp.float32)


KERNEL = np.random.default_rng(2).normal(size=(3, 3, 2, 4)).astype(np.float32)
SCALE = np.arange(1.0, 5.0, dtype=np.float32)


def conv(x, kernel=KERNEL, **options):
  options = {"window_strides": (1, 1), "padding": "SAME"} | options
  return lax.conv_general_dilated(
    x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
  )


@pytest.mark.parametrize(
  "function, left",
  [
    (lambda x: 3 - (conv(x) - SCALE) / SCALE * 2, 0),  # all of it is affine
    (lambda x: conv(x, KERNEL[:, :, :1], feature_group_count=2) / SCALE, 0),  # depthwise
    (lambda x: SCALE / conv(x), 1),  # not linear
    (lambda x: (conv(x) * SCALE).max() + conv(x) * 2, 0),
    (lambda x: (y := conv(x)) * SCALE + y, 1),  # its output is read twice
    (lambda x: conv(x) * x[..., :1], 1),  # the factor depends on the image
    (lambda x: conv(x) * np.arange(8, dtype=np.float32)[:, None], 1),  # per row
  ],
)
def test_what_is_folded_is_what_can_be(function, left):
  network = trained(Of(function), (8, 8, 2))
  program = trace(network, 2)
  folded = fold(program)
  assert names(folded)["mul"] + names(folded)["div"] - 2 == left, "two are the normalisation"
  images = pixels(network, 2)
  assert difference(np.asarray(folded(images)), np.asarray(program(images))) < 1e-5


# Every operation in ONNX.


def attention(x):
  x = x.reshape(x.shape[0], 8, 2, 2)
  scores = jnp.einsum("bqhd,bkhd->bhqk", x, x * 0.5)
  return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), x)


def padded(x):
  return jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=5)


def tokens(x):
  """A class token before the patches, as in a ViT."""
  token = jnp.broadcast_to(SCALE[:2], (x.shape[0], 1, 2))
  return jnp.concatenate([token, x.reshape(x.shape[0], -1, 2)], 1)[:, 0]


FUNCTIONS = {
  "activations": lambda x: nn.gelu(x) + nn.gelu(x, approximate=False) + nn.silu(x),
  "with branches": lambda x: nn.elu(x) + nn.relu6(4 * x) + nn.leaky_relu(x) + nn.softplus(x),
  "powers": lambda x: jnp.sqrt(x**2 + 1) + lax.rsqrt(x**4 + 1) + jnp.abs(x) ** 1.5 + x**3,
  "exponentials": lambda x: jnp.exp(-x) + jnp.exp2(x) + jnp.tanh(-x) + jnp.expm1(x),
  "angles": lambda x: jnp.sin(x) * jnp.cos(x),
  "rounding": lambda x: jnp.floor(x) + 9 * jnp.ceil(x) + jnp.sign(x) + lax.rem(x, 0.3 + 0 * x),
  "comparisons": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x < -1) | (x <= -9), x, 0),
  "equality": lambda x: jnp.where((x == x[:, :1]) | (x != x), x, 0),
  "normalisation": lambda x: (
    (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var((1, 2, 3)) + 1)[:, None, None, None]
  ),
  "reductions": lambda x: x.max(1) + x.min(2) + x.prod((1, 2), keepdims=True)[:, 0],
  "places": lambda x: x.argmax(1) - 3.0 * x.argmin(2),
  "logarithms": lambda x: nn.log_softmax(x) + jnp.log(jnp.abs(x) + 1) + jnp.log1p(x * x),
  "error function": lambda x: lax.erfc(x) + lax.erf(x * 2),
  "attention": attention,
  "class token": tokens,
  "shapes": lambda x: jnp.flip(x.transpose(0, 3, 2, 1), 2)[:, :, ::2, None].squeeze(3) * 2,
  "pieces": lambda x: jnp.concatenate(jnp.split(padded(x), [3], 2), 2),
  "joined axes": lambda x: (
    conv(x).reshape(x.shape[0], 16, 4).transpose(0, 2, 1) @ KERNEL[0, 0].repeat(8, 0)
  ),
  "dilated": lambda x: conv(
    x, rhs_dilation=(2, 1), padding=((1, 0), (0, 2)), window_strides=(2, 1)
  ),
  "grouped": lambda x: conv(x, KERNEL[:, :, :1], feature_group_count=2),
  "after a convolution": lambda x: conv(x)[:, 1:3, ::2].max(3) + conv(x)[:, 1:3, 1::2].sum(3),
  "pools": lambda x: (
    nn.max_pool(conv(x), (3, 2), (2, 1), "SAME") + nn.avg_pool(conv(x), (3, 2), (2, 1), "SAME")
  ),
  "mean pool": lambda x: nn.avg_pool(
    x, (2, 2), (2, 2), ((0, 1), (1, 0)), count_include_pad=False
  ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_onnx_computes_what_jax_does(name):
  network = trained(Of(FUNCTIONS[name]), (4, 4, 2))
  images = pixels(network)
  program = trace(network)
  expected = network.module.apply({}, (images / np.float32(255) - 0.4) / np.float32(0.3), False)
  assert difference(onnx_logits(program, images), np.asarray(expected)) < 1e-5


@pytest.mark.parametrize(
  "function, says",
  [
    (lambda x: jnp.sort(x, 1), "'sort'"),
    (lambda x: lax.fori_loop(0, 3, lambda i, y: y * 2, x), "'scan'"),
    (lambda x: conv(x, lhs_dilation=(2, 2), padding=((1, 1), (1, 1))), "transposed"),
  ],
)
def test_what_onnx_does_not_know_is_named_in_a_line(function, says):
  with pytest.raises(ValueError, match=says) as error:
    convert(trace(trained(Of(function), (4, 4, 2))))
  assert "\n" not in str(error.value) and "--formats" in str(error.value)


def test_a_convolutional_network_is_transposed_once():
  model = convert(fold(trace(trained(models.build("vgg8", 3), (8, 8, 3)))))
  kinds = Counter(node.op_type for node in model.graph.node)
  assert kinds["Transpose"] == 1 and kinds["Relu"] == kinds["Conv"] == 5
  assert all(len(node.input) == 3 for node in model.graph.node if node.op_type == "Conv")
