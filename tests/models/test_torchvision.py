"""Weights of torchvision's ResNets, from both kinds of files, beside PyTorch's own layers."""

import numpy as np
import pytest

from okdph_jax.models import torchvision
from okdph_jax.nn.students import run
from tests.methods.tiny import jit

torch = pytest.importorskip("torch")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Block(torch.nn.Module):
  """torchvision's BasicBlock and Bottleneck, by their names."""

  def __init__(self, inputs, width, stride, bottleneck):
    super().__init__()
    sizes = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
    sizes = sizes if bottleneck else [(width, 3, stride), (width, 3, 1)]
    self.convolutions, outputs = len(sizes), sizes[-1][0]
    self.downsample = None
    channels = inputs
    for i, (size, kernel, step) in enumerate(sizes, start=1):
      conv = torch.nn.Conv2d(channels, size, kernel, step, kernel // 2, bias=False)
      setattr(self, f"conv{i}", conv)
      setattr(self, f"bn{i}", torch.nn.BatchNorm2d(size))
      channels = size
    if inputs != outputs or stride != 1:
      conv = torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)
      self.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(outputs))

  def forward(self, x):
    y = x
    for i in range(1, self.convolutions + 1):
      y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
      y = y if i == self.convolutions else y.relu()
    return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(torch.nn.Module):
  def __init__(self, blocks, bottleneck, classes):
    super().__init__()
    self.conv1, self.bn1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64)
    channels = 64
    for stage, count in enumerate(blocks):
      width, layers = 64 * 2**stage, []
      for i in range(count):
        layers.append(Block(channels, width, 2 if stage and not i else 1, bottleneck))
        channels = width * (4 if bottleneck else 1)
      setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*layers))
    self.fc = torch.nn.Linear(channels, classes)

  def forward(self, x):
    x = torch.nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
    for stage in range(1, 5):
      x = getattr(self, f"layer{stage}")(x)
    return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def trained(request):
  """(name, network, pixels / 255 [2, 3, 16, 16], its logits); no leaf is as it starts."""
  torch.manual_seed(0)
  bottleneck = request.param == "resnet50"
  net = ResNet((3, 4, 6, 3) if bottleneck else (2, 2, 2, 2), bottleneck, 5).eval()
  for module in net.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
        torch.nn.init.uniform_(tensor, 0.2, 0.8)
  image = torch.rand(2, 3, 16, 16)
  mean, std = (torch.tensor(x)[:, None, None] for x in (torchvision.MEAN, torchvision.STD))
  with torch.no_grad():
    return request.param, net, image, net((image - mean) / std).numpy()


def logits(path, name, image):
  """Of the network in the file, for images that a run has normalised."""
  module, variables = torchvision.load(path, name, MEAN, STD)
  x = (image.permute(0, 2, 3, 1).numpy() - np.float32(MEAN)) / np.float32(STD)
  return jit(lambda variables: run(module, variables, x)[0])(variables)


def test_safetensors_compute_what_pytorch_computes(trained, tmp_path):
  save_file = pytest.importorskip("safetensors.torch").save_file
  name, net, image, expected = trained
  save_file(net.state_dict(), tmp_path / "net.safetensors")
  found = logits(tmp_path / "net.safetensors", name, image)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("folded", [False, True])
def test_onnx_computes_what_pytorch_computes(trained, tmp_path, folded):
  """The nodes in the order in which an exporter writes them, under names of their own."""
  onnx = pytest.importorskip("onnx")
  name, net, image, expected = trained
  nodes, constants = [], []

  def node(kind, *arrays, **attributes):
    names = [f"c{len(constants) + i}" for i in range(len(arrays))]
    constants.extend(map(onnx.numpy_helper.from_array, arrays, names))
    nodes.append(onnx.helper.make_node(kind, ["x", *names], ["x"], **attributes))

  state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
  for key in state:  # PyTorch's order is that of its layers
    if key.endswith("running_mean"):
      norm = key.removesuffix(".running_mean")
      conv = norm.replace("bn", "conv").replace("downsample.1", "downsample.0")
      kernel = state[f"{conv}.weight"]
      scale, shift, mean, var = (
        state[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
      )
      if folded:
        factor = scale / np.sqrt(var + np.float32(1e-5))
        node("Conv", kernel * factor[:, None, None, None], shift - mean * factor)
      else:
        node("Conv", kernel)
        node("BatchNormalization", scale, shift, mean, var)
  node("Gemm", state["fc.weight"], state["fc.bias"], transB=1)
  graph = onnx.helper.make_graph(nodes, "g", [], [], constants)
  onnx.save(onnx.helper.make_model(graph), tmp_path / "net.onnx")
  found = logits(tmp_path / "net.onnx", name, image)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_wrong_files_are_refused_in_one_line(trained, tmp_path):
  save_file = pytest.importorskip("safetensors.torch").save_file
  name, net, *_ = trained
  path = tmp_path / "net.safetensors"
  save_file(net.state_dict(), path)
  other = "resnet34" if name == "resnet18" else "resnet18"
  (tmp_path / "text.safetensors").write_text("no weights")
  for file, network, words in (
    (path, other, f"is not a {other}"),
    (path, "", "name their network"),
    (tmp_path / "absent.onnx", name, "there is no file"),
    (tmp_path / "text.safetensors", name, "cannot be read"),
  ):
    with pytest.raises(ValueError, match=words) as refused:
      torchvision.load(file, network, MEAN, STD)
    assert "\n" not in str(refused.value)
