"""The OKDPH step in PyTorch eager, to compare with: students and hybrid, KD loss, SGD.

ResNet32 as in the paper's release, untuned. Only `benchmarks.train_step` runs this.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

OMEGA, BETA, TEMPERATURE = 0.8, 0.8, 4.0


def convolution(inputs, outputs, kernel, stride):
  conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Basic(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.first = convolution(inputs, outputs, 3, stride)
    self.second = convolution(outputs, outputs, 3, 1)
    same = inputs == outputs and stride == 1
    self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

  def forward(self, x):
    return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet32(classes=10):
  layers, inputs = [convolution(3, 16, 3, 1), nn.ReLU()], 16
  for outputs in (16, 32, 64):
    for i in range(5):
      layers.append(Basic(inputs, outputs, 2 if i == 0 and outputs > 16 else 1))
      inputs = outputs
  head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)
  return nn.Sequential(*layers, *head)


def step_function(students, batch, channels_last):
  """A step on fixed random views, as a function without arguments."""
  layout = torch.channels_last if channels_last else torch.contiguous_format
  networks = [resnet32().to(memory_format=layout) for _ in range(students)]
  hybrid = resnet32().to(memory_format=layout)
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
