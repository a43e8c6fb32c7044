"""Every network against published counts, the specification's shapes, and PyTorch."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from okdph_jax import models
from okdph_jax.models import densenet, mobilenet, resnet, shufflenet, vgg
from okdph_jax.models.net import Net

IMAGENET = {"resnet18", "resnet34", "resnet50", "mobilenet_v1"}

PARAMETERS = {  # name: {classes: trainable parameters}
  "resnet8": {10: 78_042, 100: 83_892},
  "resnet20": {10: 272_474, 100: 278_324},
  "resnet32": {10: 466_906, 100: 472_756},
  "resnet44": {10: 661_338, 100: 667_188},
  "resnet56": {10: 855_770, 100: 861_620},
  "resnet110": {10: 1_147_738, 100: 1_170_868},
  "wrn20_8": {10: 6_848_090, 100: 6_871_220},
  "vgg16": {10: 15_253_578, 100: 15_299_748},
  "densenet40_12": {10: 176_122, 100: 188_092},
  "resnet110_basic": {10: 1_730_714, 100: 1_736_564},
  "wrn_16_2": {10: 691_674, 100: 703_284},
  "wrn_28_10": {10: 36_479_194, 100: 36_536_884},
  "wrn_40_2": {10: 2_243_546, 100: 2_255_156},
  "densenet40_12_plain": {10: 1_019_722, 100: 1_060_132},
  # torchvision's, and the sum over the layers of MobileNet's table 1
  "resnet18": {1000: 11_689_512},
  "resnet34": {1000: 21_797_672},
  "resnet50": {1000: 25_557_032},
  "mobilenet_v1": {1000: 4_231_976},
  # from the layers of RepDistiller's networks
  "resnet8x4": {100: 1_233_540},
  "resnet32x4": {100: 7_433_860},
  "vgg8": {100: 3_965_028},
  "vgg13": {100: 9_462_180},
  # torchvision's 2,278,604 of 1000 classes, whose entry is 3x3
  "shufflenet_v2": {100: 1_355_528, 1000: 2_278_604 - 24 * 3 * 8},
  # 2.36 and 11.2 million in the lists of networks for small images that they come from
  "mobilenet_v2": {100: 2_369_380},
  "resnet18_small": {10: 11_173_962, 100: 11_220_132},
}

SPLIT = {  # name: (stem's output, branch's map, width of the feature)
  "resnet8": ((16, 16, 32), (8, 8, 64), 64),
  "resnet56": ((16, 16, 32), (8, 8, 64), 64),
  "resnet110": ((16, 16, 128), (8, 8, 256), 256),
  "wrn20_8": ((16, 16, 128), (8, 8, 256), 256),
  "vgg16": ((2, 2, 512), (1, 1, 512), 512),
  "densenet40_12": ((8, 8, 60), (8, 8, 132), 132),
  "resnet18": ((14, 14, 256), (7, 7, 512), 512),
  "resnet50": ((14, 14, 1024), (7, 7, 2048), 2048),
  "mobilenet_v1": ((14, 14, 512), (7, 7, 1024), 1024),
  "wrn_16_2": ((16, 16, 64), (8, 8, 128), 128),
  "densenet40_12_plain": ((8, 8, 304), (8, 8, 448), 448),
  "resnet8x4": ((16, 16, 128), (8, 8, 256), 256),
  "vgg8": ((4, 4, 512), (4, 4, 512), 512),
  "shufflenet_v2": ((8, 8, 232), (4, 4, 1024), 1024),
  "mobilenet_v2": ((5, 5, 96), (5, 5, 1280), 1280),
  "resnet18_small": ((8, 8, 256), (4, 4, 512), 512),
}

BRANCH = {  # parameters of one branch for 10 and for 100 classes
  "resnet32": (354_314, 360_164),
  "resnet110": (872_458, 895_588),
  "vgg16": (7_612_938, 7_659_108),
  "densenet40_12": (60_274, 72_244),
  "wrn20_8": (5_218_314, 5_241_444),
}


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shapes(module, x):
  """Output and variables of `module` on x, without computing them."""
  init = functools.partial(module.init_with_output, jax.random.key(0))
  return jax.eval_shape(lambda x: init(x, False), x)


@functools.cache
def stem(name):
  size = 224 if name in IMAGENET else 32
  image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  return shapes(models.build(name, 10).stem, image)


@functools.cache
def branch(name, classes):
  return shapes(models.build(name, classes).branch, stem(name)[0])


def test_every_network_has_a_published_count():
  assert set(PARAMETERS) == set(models.NETS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
  for classes, published in PARAMETERS[name].items():
    assert (
      count(stem(name)[1]["params"]) + count(branch(name, classes)[1]["params"]) == published
    )


def test_pytorch_networks_of_the_benchmark():
  pytest.importorskip("torch")
  from benchmarks.torch_step import NETWORKS

  for name, network in NETWORKS.items():
    assert sum(p.numel() for p in network().parameters()) == PARAMETERS[name][10], name


@pytest.mark.parametrize("name", BRANCH)
def test_branch_counts(name):
  assert tuple(count(branch(name, k)[1]["params"]) for k in (10, 100)) == BRANCH[name]


def test_count_of_a_whole_network():
  assert models.parameters(models.build("resnet8", 10), (32, 32, 3)) == 78_042
  assert models.parameters(models.build("resnet8", 10), (8, 8, 1)) == 78_042 - 2 * 9 * 16


def stages(name):
  early = stem(name)[1]["params"]
  counts = [count(early[f"stages_{i}"]) for i in range(len(early) - 1)]
  return [*counts, count(branch(name, 10)[1]["params"]["stage"])]


@pytest.mark.parametrize(
  ("name", "published"),
  [
    ("resnet8", [4_672, 14_528, 57_728]),
    ("resnet32", [23_360, 88_768, 353_664]),
    ("resnet110", [54_912, 219_904, 869_888]),
    ("wrn20_8", [323_968, 1_305_344, 5_215_744]),
    ("resnet18", [147_968, 525_568, 2_099_712, 8_393_728]),
  ],
)
def test_stage_counts(name, published):
  assert stages(name) == published


def test_densenet_parts():
  early, late = stem("densenet40_12")[1]["params"], branch("densenet40_12", 10)[1]["params"]
  parts = "Conv_0", "Block_0", "Transition_0", "Block_1", "Transition_1"
  assert [count(early[part]) for part in parts] == [648, 47_880, 4_800, 55_080, 7_440]
  parts = "Block_0", "BatchNorm_0", "Dense_0"
  assert [count(late[part]) for part in parts] == [58_680, 264, 1_330]


@pytest.mark.parametrize(
  ("name", "tensors", "statistics"),
  [
    ("resnet32", 101, 2_464),
    ("resnet110", 338, 17_056),
    ("wrn20_8", 68, 9_888),
    ("vgg16", 58, 8_448),
    ("densenet40_12", 119, 5_088),
  ],
)
def test_tensors_and_running_statistics(name, tensors, statistics):
  variables = stem(name)[1], branch(name, 10)[1]
  assert sum(len(jax.tree.leaves(v["params"])) for v in variables) == tensors
  assert sum(count(v["batch_stats"]) for v in variables) == statistics
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", SPLIT)
def test_split(name):
  early, late, width = SPLIT[name]
  outputs = branch(name, 10)[0]
  assert stem(name)[0].shape == (2, *early)
  assert outputs.map.shape == (2, *late)
  assert outputs.feature.shape == (2, width)
  assert outputs.logits.shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet18_small", "mobilenet_v2", "shufflenet_v2", "vgg16"])
def test_images_of_tiny_imagenet(name):
  image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  assert shapes(models.build(name, 200), image)[0].shape == (2, 200)


def test_one_channel_and_eight_pixels():
  image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
  assert shapes(models.build("resnet8", 10), image)[0].shape == (2, 10)
  with pytest.raises(ValueError, match="at least 32x32 pixels"):
    shapes(models.build("vgg16", 10), image)


def test_about_names_the_variant():
  abouts = [models.build(name, 10).about for name in models.NETS]
  assert len(set(abouts)) == len(abouts)
  assert all("\n" not in about for about in abouts)


# Initialisation. The generator "rbg" compiles in a fraction of the default's time.


def initial(module, x):
  key = jax.random.key(0, impl="rbg")
  return jax.jit(lambda key: module.init(key, x, False)["params"])(key)


@pytest.mark.parametrize(
  ("name", "size", "squares", "absolutes"),
  [("resnet32", 4, 3.48e3, 2.62e4), ("vgg16", 32, 1.17e4, 2.68e5)],
)
def test_norms_at_the_start(name, size, squares, absolutes):
  leaves = jax.tree.leaves(initial(models.build(name, 10), jnp.zeros((1, size, size, 3))))
  assert sum(float((leaf**2).sum()) for leaf in leaves) == pytest.approx(squares, rel=0.01)
  assert sum(float(abs(leaf).sum()) for leaf in leaves) == pytest.approx(absolutes, rel=0.01)


@pytest.mark.parametrize(
  ("name", "channels", "path", "fan"),
  [
    ("resnet32", 32, ("stage", "Basic_0", "Conv_0"), 9 * 64),
    ("resnet110", 128, ("stage", "Bottleneck_0", "Conv_1"), 9 * 64),
    ("wrn20_8", 128, ("stage", "Bottleneck_0", "Conv_0"), 512),
    ("vgg16", 512, ("Group_0", "Conv_0"), 9 * 512),
    ("densenet40_12", 60, ("Block_0", "Layer_5", "Conv_0"), 120),
  ],
)
def test_moments_at_the_start(name, channels, path, fan):
  net, x = models.build(name, 10).branch, jnp.zeros((1, 2, 2, channels))
  key = jax.random.key(0, impl="rbg")

  def kernel(key):
    params = net.init(key, x, False)["params"]
    return functools.reduce(lambda tree, part: tree[part], path, params)["kernel"]

  kernel = jax.jit(kernel)(key)
  assert kernel.std() == pytest.approx(math.sqrt(2 / fan), rel=0.03)
  assert abs(kernel.mean()) < 4 * kernel.std() / math.sqrt(kernel.size)
  # neither truncated nor uniform: their kurtosis is 2.4 and 1.8
  assert ((kernel / kernel.std()) ** 4).mean() == pytest.approx(3, rel=0.1)


def test_classifiers_at_the_start():
  params = initial(resnet.Branch(Identity(), 100), jnp.zeros((1, 1, 1, 64)))["Dense_0"]
  for leaf in jax.tree.leaves(params):  # U(-1/8, 1/8)
    assert 0.11 < abs(leaf).max() <= 0.125
    assert leaf.std() == pytest.approx(0.125 / math.sqrt(3), rel=0.1)
  params = initial(vgg.Branch((8,), 500, hidden=(500,)), jnp.zeros((1, 1, 1, 8)))
  assert params["Dense_1"]["kernel"].std() == pytest.approx(0.01, rel=0.01)
  assert not params["Dense_1"]["bias"].any()
  params = initial(densenet.Branch(Identity, 100), jnp.zeros((1, 1, 1, 64)))["Dense_0"]
  assert not params["bias"].any() and 0.11 < abs(params["kernel"]).max() <= 0.125


class Identity(nn.Module):
  """A stage that does nothing."""

  def __call__(self, x, train):
    return x


# Parity: the same weights in PyTorch, every layer written out in its own terms.


class Reference:
  """PyTorch's layers on one subtree of Flax variables; NCHW, train updates the statistics."""

  def __init__(self, params, stats, train):
    self.params, self.stats, self.train = params, stats, train

  def __getitem__(self, name):
    return Reference(self.params.get(name, {}), self.stats.get(name, {}), self.train)

  def __contains__(self, name):
    return name in self.params

  def conv(self, i, x, stride=1, groups=1):
    torch = pytest.importorskip("torch")
    layer = self.params[f"Conv_{i}"]
    kernel = layer["kernel"].permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(
      x, kernel, layer.get("bias"), stride, kernel.shape[-1] // 2, groups=groups
    )

  def norm(self, i, x):
    torch = pytest.importorskip("torch")
    layer, stats = self.params[f"BatchNorm_{i}"], self.stats[f"BatchNorm_{i}"]
    return torch.nn.functional.batch_norm(
      x, stats["mean"], stats["var"], layer["scale"], layer["bias"], self.train, 0.1, 1e-5
    )

  def dense(self, i, x):
    layer = self.params[f"Dense_{i}"]
    return x @ layer["kernel"] + layer["bias"]


def basic(net, x, stride):
  y = net.norm(0, net.conv(0, x, stride)).relu()
  y = net.norm(1, net.conv(1, y))
  x = net.norm(2, net.conv(2, x, stride)) if "Conv_2" in net else x
  return (x + y).relu()


def bottleneck(net, x, stride):
  y = net.norm(0, net.conv(0, x)).relu()
  y = net.norm(1, net.conv(1, y, stride)).relu()
  y = net.norm(2, net.conv(2, y))
  return (net.norm(3, net.conv(3, x, stride)) + y).relu()


def preactivated(net, x, stride):
  y = net.norm(0, x).relu()
  x = net.conv(0, y, stride)
  return x + net.conv(2, net.norm(1, net.conv(1, y, stride)).relu())


def resnet8(net, x):
  entry, stages = net["stem"]["entry"], net["stem"]
  x = entry.norm(0, entry.conv(0, x)).relu()
  x = basic(stages["stages_0"]["Basic_0"], x, 1)
  x = basic(stages["stages_1"]["Basic_0"], x, 2)
  x = basic(net["branch"]["stage"]["Basic_0"], x, 2)
  return net["branch"].dense(0, x.mean((2, 3)))


def large(net, x):
  torch = pytest.importorskip("torch")
  x = net.norm(0, net.conv(0, x, 2)).relu()
  return torch.nn.functional.max_pool2d(x, 3, 2, 1)


def vgg_small(net, x):
  torch = pytest.importorskip("torch")
  for group in (net["stem"]["Group_0"], net["stem"]["Group_1"], net["branch"]["Group_0"]):
    x = group.norm(0, group.conv(0, x)).relu()
    x = torch.nn.functional.max_pool2d(x, 2)
  return net["branch"].dense(1, net["branch"].dense(0, x.flatten(1)).relu())


def densenet_small(net, x):
  torch = pytest.importorskip("torch")

  def block(net, x):
    for i in range(2):
      layer = net[f"Layer_{i}"]
      y = layer.conv(0, layer.norm(0, x).relu())
      x = torch.cat([x, layer.conv(1, layer.norm(1, y).relu())], 1)
    return x

  stem, branch = net["stem"], net["branch"]
  x = stem.conv(0, x)
  for i in range(2):
    step = stem[f"Transition_{i}"]
    x = block(stem[f"Block_{i}"], x)
    x = torch.nn.functional.avg_pool2d(step.conv(0, step.norm(0, x).relu()), 2)
  x = branch.norm(0, block(branch["Block_0"], x)).relu()
  return branch.dense(0, x.mean((2, 3)))


def separable(net, x, stride):
  x = net.norm(0, net.conv(0, x, stride, groups=x.shape[1])).relu()
  return net.norm(1, net.conv(1, x)).relu()


def inverted_residual(net, x):
  y = net.norm(0, net.conv(0, x)).clip(0, 6)
  y = net.norm(1, net.conv(1, y, groups=y.shape[1])).clip(0, 6)
  return x + net.norm(2, net.conv(2, y))


def shuffled(left, right):
  torch = pytest.importorskip("torch")
  x = torch.cat([left, right], 1)
  b, c, h, w = x.shape
  return x.reshape(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def first_unit(net, x):
  left = net.norm(0, net.conv(0, x, 2, groups=x.shape[1]))
  left = net.norm(1, net.conv(1, left)).relu()
  right = net.norm(2, net.conv(2, x)).relu()
  right = net.norm(3, net.conv(3, right, 2, groups=right.shape[1]))
  return shuffled(left, net.norm(4, net.conv(4, right)).relu())


def unit(net, x):
  left, right = x.chunk(2, 1)
  right = net.norm(0, net.conv(0, right)).relu()
  right = net.norm(1, net.conv(1, right, groups=right.shape[1]))
  return shuffled(left, net.norm(2, net.conv(2, right)).relu())


SMALL_VGG = Net(vgg.Stem(((4,), (6,))), vgg.Branch((8,), 5, hidden=(7,), pool=True), "")
DENSE = functools.partial(densenet.Block, layers=2, growth=4, bottleneck=True)
SMALL_DENSENET = Net(densenet.Stem(6, DENSE, 0.5), densenet.Branch(DENSE, 5), "")


@pytest.mark.parametrize(
  ("module", "shape", "reference"),
  [
    (resnet.resnet8(10), (4, 16, 16, 3), resnet8),
    (resnet.Bottleneck(4, 2, widen=2), (4, 7, 7, 6), functools.partial(bottleneck, stride=2)),
    (resnet.Preactivated(8, 2), (4, 8, 8, 6), functools.partial(preactivated, stride=2)),
    (resnet.Large(4), (3, 16, 16, 3), large),
    (SMALL_VGG, (4, 9, 8, 3), vgg_small),
    (SMALL_DENSENET, (4, 8, 8, 3), densenet_small),
    (mobilenet.Separable(8, 2), (4, 8, 8, 6), functools.partial(separable, stride=2)),
    (mobilenet.InvertedResidual(6, 1, 3), (4, 8, 8, 6), inverted_residual),
    (shufflenet.Unit(8, first=True), (4, 8, 8, 6), first_unit),
    (shufflenet.Unit(8, first=False), (4, 8, 8, 8), unit),
  ],
  ids=[
    *("resnet8", "bottleneck", "preactivated", "large", "vgg", "densenet", "separable"),
    *("inverted residual", "first unit", "unit"),
  ],
)
def test_parity_with_pytorch(module, shape, reference):
  torch = pytest.importorskip("torch")
  random = np.random.default_rng(0)
  x = random.normal(size=shape).astype("float32")
  variables = jax.tree.map(  # no scale, shift or statistic at its start; variances positive
    lambda leaf: (
      random.uniform(0.1, 1, leaf.shape).astype("float32")
      if leaf.ndim == 1
      else (random.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))).astype("f")
    ),
    shapes(module, jnp.asarray(x))[1],
  )

  @jax.jit
  def both(variables, x):
    return module.apply(variables, x, False), module.apply(
      variables, x, True, mutable=["batch_stats"]
    )

  ours, (ours_trained, new) = both(variables, x)
  theirs = jax.tree.map(torch.tensor, variables)
  image = torch.tensor(x).permute(0, 3, 1, 2)

  def compare(a, b):
    b = b.permute(0, 2, 3, 1) if b.ndim == 4 else b
    np.testing.assert_allclose(a, b.numpy(), atol=1e-4)

  compare(ours, reference(Reference(theirs["params"], theirs["batch_stats"], False), image))
  compare(
    ours_trained, reference(Reference(theirs["params"], theirs["batch_stats"], True), image)
  )
  check_statistics(new["batch_stats"], theirs["batch_stats"], variables["batch_stats"])


def check_statistics(ours, theirs, old):
  """Running statistics after one step: PyTorch divides the variance's sum by n - 1."""
  if "mean" not in ours:
    for name in ours:
      check_statistics(ours[name], theirs[name], old[name])
    return
  np.testing.assert_allclose(ours["mean"], theirs["mean"].numpy(), atol=1e-5)
  biased = (np.asarray(ours["var"]) - 0.9 * old["var"]) / 0.1
  unbiased = (theirs["var"].numpy() - 0.9 * old["var"]) / 0.1
  n = np.median(unbiased / (unbiased - biased))  # n / (n - 1) apart, one n for all channels
  assert n == pytest.approx(round(n), rel=0.05) and n > 2
  np.testing.assert_allclose(biased * n / (n - 1), unbiased, rtol=5e-3, atol=1e-4)


# Names and a user's own network.


class Plain(nn.Module):
  """A user's network: no batch statistics, dropout."""

  classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2))
    return nn.Dense(self.classes)(nn.Dropout(0.5, deterministic=not train)(x))


class NeedsWidth(nn.Module):
  classes: int
  width: int


def not_a_module(classes):
  return classes


def test_own_network_by_path():
  net = models.build(f"{__name__}:Plain", 7)
  assert isinstance(net, Plain) and net.classes == 7
  assert models.parameters(net, (8, 8, 1)) == 9 * 4 + 4 + 4 * 7 + 7


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("resnet23", r"unknown network 'resnet23'; did you mean 'resnet2?3?\d'.*wrn_28_10"),
    ("my_pkg.nets.SmallNet", "package.module:Name"),
    ("no_such_package.nets:Net", "cannot be imported.*No module named 'no_such_package'"),
    (f"{__name__}:Plane", "has no 'Plane'.*Plain"),
    (f"{__name__}:NeedsWidth", "missing a required argument: 'width'"),
    (f"{__name__}:not_a_module", "is a int; it must be a flax.linen.Module, or the class"),
  ],
)
def test_bad_names(name, message):
  with pytest.raises(ValueError, match=message) as error:
    models.build(name, 10)
  assert not re.search("\n", str(error.value))
