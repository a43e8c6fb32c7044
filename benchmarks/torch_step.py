"""The OKDPH step in PyTorch eager, to compare with: students and hybrid, KD loss, SGD.

The paper's backbones for CIFAR-10 as its release builds them, and smaller ones, untuned.
`benchmarks.train_step` runs it.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

OMEGA, BETA, TEMPERATURE = 0.8, 0.8, 4.0


def convolution(inputs, outputs, kernel, stride=1, bias=False):
  conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
  return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
  """Convolutions with a ReLU between, beside a shortcut; a ReLU behind their sum."""

  def __init__(self, inputs, outputs, stride, *convolutions):
    super().__init__()
    first, *others = convolutions
    self.path = nn.Sequential(first, *(m for conv in others for m in (nn.ReLU(), conv)))
    same = inputs == outputs and stride == 1
    self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

  def forward(self, x):
    return F.relu(self.path(x) + self.shortcut(x))


def basic(inputs, width, stride):
  first = convolution(inputs, width, 3, stride)
  return Residual(inputs, width, stride, first, convolution(width, width, 3)), width


def bottleneck(inputs, width, stride, widen=1):
  inner, outputs = width * widen, 4 * width
  convolutions = (
    convolution(inputs, inner, 1),
    convolution(inner, inner, 3, stride),
    convolution(inner, outputs, 1),
  )
  return Residual(inputs, outputs, stride, *convolutions), outputs


def resnet(block, blocks):
  layers, inputs = [convolution(3, 16, 3), nn.ReLU()], 16
  for width in (16, 32, 64):
    for i in range(blocks):
      layer, inputs = block(inputs, width, 2 if i == 0 and width > 16 else 1)
      layers.append(layer)
  head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)
  return nn.Sequential(*layers, *head)


def vgg16():
  layers, inputs = [], 3
  for widths in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
    for width in widths:
      layers += [convolution(inputs, width, 3, bias=True), nn.ReLU()]
      inputs = width
    layers.append(nn.MaxPool2d(2))
  hidden = nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()
  return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(512, 10))


class Dense(nn.Module):
  """Appends `growth` channels through a bottleneck."""

  def __init__(self, inputs, growth=12):
    super().__init__()
    self.path = nn.Sequential(
      nn.BatchNorm2d(inputs),
      nn.ReLU(),
      convolution(inputs, 4 * growth, 1),
      nn.ReLU(),
      nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
    )

  def forward(self, x):
    return torch.cat([x, self.path(x)], 1)


def densenet40_12():
  layers, width = [nn.Conv2d(3, 24, 3, 1, 1, bias=False)], 24
  for block in range(3):
    layers += [Dense(width + 12 * i) for i in range(6)]
    width += 72
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    if block < 2:
      layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
      width //= 2
  head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
  return nn.Sequential(*layers, *head)


NETWORKS = {
  "resnet8": functools.partial(resnet, basic, 1),
  "resnet20": functools.partial(resnet, basic, 3),
  "resnet32": functools.partial(resnet, basic, 5),
  "resnet110": functools.partial(resnet, bottleneck, 12),
  "wrn20_8": functools.partial(resnet, functools.partial(bottleneck, widen=8), 2),
  "vgg16": vgg16,
  "densenet40_12": densenet40_12,
}


def step_function(network, students, batch, channels_last):
  """A step on fixed random views, as a function without arguments."""
  layout = torch.channels_last if channels_last else torch.contiguous_format
  *networks, hybrid = (
    NETWORKS[network]().to(memory_format=layout) for _ in range(students + 1)
  )
  views = [
    torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout) for _ in range(students + 1)
  ]
  label = torch.randint(10, (batch,))
  parameters = [dict(net.named_parameters()) for net in networks]
  buffers = [dict(net.named_buffers()) for net in networks]
  moved = [p for own in parameters for p in own.values()]
  optimizer = torch.optim.SGD(moved, lr=0.05, momentum=0.9, weight_decay=5e-4)
  dirichlet = torch.distributions.Dirichlet(torch.ones(students))

  def mix(weights, stacks):
    return {
      name: sum(w * s[name] for w, s in zip(weights, stacks, strict=True)) for name in stacks[0]
    }

  def step():
    weights = dirichlet.sample()
    own = [net(view) for net, view in zip(networks, views[:-1], strict=True)]
    variables = mix(weights, parameters), mix(weights, buffers)
    mixed = functional_call(hybrid, variables, (views[-1],))
    teacher = F.softmax((sum(own) + mixed).detach() / (students + 1) / TEMPERATURE, 1)
    loss = (1 - OMEGA) * F.cross_entropy(mixed, label)
    for logits in own:
      log_p = F.log_softmax(logits / TEMPERATURE, 1)
      distill = TEMPERATURE**2 * F.kl_div(log_p, teacher, reduction="batchmean")
      loss = loss + OMEGA * F.cross_entropy(logits, label) + BETA * distill
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()

  return step
