"""OKDPH in PyTorch as its authors' release computes it: what a run of ours is compared with.

    python -m benchmarks.torch_okdph --config=release:okdph,resnet32,cifar10,0.01 \\
      --config.eval_every_epochs=60 --config.seed=42
    okdph train --config=release:okdph,resnet32,cifar10,0.01 \\
      --config.eval_every_epochs=60 --config.seed=42 --workdir=DIR

Both read the same config, start from the same weights, and see the same batches and views, bit
for bit; networks, gradients, SGD, fusion and evaluation are PyTorch's here. Written from a
description of the release (docs/paper-and-release.md, R1 to R4 and R19), not from its code.
Prints one JSON line per evaluation. `tests/methods/test_release_in_pytorch.py` compares steps.
"""

import json
import re
import sys

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_step import NETWORKS
from okdph_jax import data, durations
from okdph_jax.experiment.build import build
from okdph_jax.main import parse
from okdph_jax.training.step import initial_state

RELEASE = dict(
  hybrid_gradient=False, weights="uniform", fuse_with="previous", fuse_clock="epoch"
)
RESIDUAL = ("resnet8", "resnet20", "resnet32", "resnet110", "wrn20_8")


class Loop:
  """Students, their hybrid and their optimizers; `method` are the options of our `okdph`."""

  def __init__(self, networks, method, epoch_steps, *, momentum, weight_decay):
    *self.students, self.hybrid = networks
    self.omega, self.beta, self.gamma = (method[name] for name in ("omega", "beta", "gamma"))
    self.temperature, self.epoch_steps = method["temperature"], epoch_steps
    self.count, self.unit = durations.parse(method["fuse_every"])
    self.optimizers = [
      torch.optim.SGD(net.parameters(), 0.1, momentum, weight_decay=weight_decay)
      for net in self.students
    ]

  def step(self, views, label, step, learning_rate):
    """One batch: views [N + 1, B, C, H, W], `step` steps were done. Returns the objective."""
    self.rebuild_hybrid()
    for net in (*self.students, self.hybrid):
      net.train()
    own = [net(view) for net, view in zip(self.students, views[:-1], strict=True)]
    with torch.no_grad():  # the hybrid is a copy: its loss has no gradient for the students
      mixed = self.hybrid(views[-1])
      mean = (sum(own) + mixed) / (len(own) + 1)
      teacher = F.softmax(mean / self.temperature, 1)
      hybrid_loss = F.cross_entropy(mixed, label)
    position = step % self.epoch_steps
    objective = (1 - self.omega) * hybrid_loss.item()  # of each student, counted once
    for net, logits, optimizer in zip(self.students, own, self.optimizers, strict=True):
      log_p = F.log_softmax(logits / self.temperature, 1)
      distill = self.temperature**2 * F.kl_div(log_p, teacher, reduction="batchmean")
      loss = self.omega * F.cross_entropy(logits, label) + self.beta * distill
      optimizer.param_groups[0]["lr"] = learning_rate
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      if self.unit == "step" and position % self.count == 0:
        self.fuse(net)
      objective += loss.item()
    return objective

  def end_epoch(self, epoch):
    """After the evaluation of `epoch`, from 0: fusion by epochs."""
    if self.unit == "epoch" and epoch % self.count == 0:
      for net in self.students:
        self.fuse(net)

  @torch.no_grad()
  def rebuild_hybrid(self):
    """The plain mean of the students, parameters and running statistics alike."""
    for target, *sources in zip(*map(numbers, (self.hybrid, *self.students)), strict=True):
      target.copy_(sum(sources) / len(sources))

  @torch.no_grad()
  def fuse(self, student):
    """Towards the hybrid of this step's forward pass, which has updated its statistics."""
    for target, hybrid in zip(numbers(student), numbers(self.hybrid), strict=True):
      target.copy_(self.gamma * hybrid + (1 - self.gamma) * target)


def numbers(net):
  """The parameters and running statistics of a network; no counters."""
  return [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]


@torch.no_grad()
def load(net, variables):
  """Gives a network of `benchmarks.torch_step` the Linen variables of ours."""
  layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
  ours = in_order(variables["params"], variables["batch_stats"])
  for layer, (params, stats) in zip(layers, ours, strict=True):
    params = {name: torch.tensor(np.asarray(leaf)) for name, leaf in params.items()}
    if isinstance(layer, nn.BatchNorm2d):
      layer.weight.copy_(params["scale"])
      layer.running_mean.copy_(torch.tensor(np.asarray(stats["mean"])))
      layer.running_var.copy_(torch.tensor(np.asarray(stats["var"])))
    else:
      kernel = params["kernel"]
      layer.weight.copy_(kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)
    if layer.bias is not None:
      layer.bias.copy_(params["bias"])
  return net


def in_order(params, stats):
  """(parameters, statistics) of each layer of a residual network, as the image meets them."""

  def place(name):
    word, number = re.fullmatch(r"(\w+?)(?:_(\d+))?", name).groups()
    return int(number or -1), word in ("branch", "BatchNorm")

  for name in sorted(params, key=place):
    if {"kernel", "scale"} & params[name].keys():
      yield params[name], stats.get(name, {})
    else:
      yield from in_order(params[name], stats.get(name, {}))


def channels_first(images):
  return torch.tensor(np.moveaxis(np.asarray(images), -1, -3))


@torch.no_grad()
def accuracy(net, batches):
  """The fraction of the images of (image, label) pairs that is classified correctly."""
  net.eval()
  right = [(net(image).argmax(1) == label).float() for image, label in batches]
  return torch.cat(right).mean().item()


def main(arguments):
  config, *_ = parse([*arguments, "--workdir=unused"])
  asked = {name: config.method.get(name) for name in RELEASE}
  if asked != RELEASE or config.network not in RESIDUAL or config.wrappers:
    raise SystemExit(f"it runs okdph with {RELEASE} on {', '.join(RESIDUAL)}, without wrappers")
  dataset = data.load(config)
  experiment = build(config, dataset)
  method, tx = experiment.parts(experiment.numbers)
  key, views = jax.random.key(config.seed), jax.jit(experiment.augment)
  batch = dataset.train.batches(seed=config.seed, batch_size=config.batch_size)
  start = jax.jit(lambda: initial_state(method, tx, experiment.augment, batch(0), key))()
  first = jax.tree.map(lambda leaf: leaf[0], start.learner.students)
  loop = Loop(
    [load(NETWORKS[config.network](), first) for _ in range(config.method.students + 1)],
    config.method,
    experiment.epoch_steps,
    momentum=config.momentum,
    weight_decay=config.weight_decay,
  )
  test = []
  for part, mask in dataset.test.padded(500):
    kept, image = np.asarray(mask), experiment.test_view(key, part.image)[0]
    test.append((channels_first(image)[kept], torch.tensor(np.array(part.label)[kept])))
  for step in range(experiment.steps):
    drawn = batch(step)
    key_views = jax.random.split(jax.random.fold_in(key, step), 3)[0]
    seen, label = channels_first(views(key_views, drawn.image)), np.array(drawn.label, np.int64)
    loop.step(seen, torch.tensor(label), step, float(experiment.schedule(step)))
    epoch, rest = divmod(step + 1, experiment.epoch_steps)
    if rest == 0:
      if epoch % config.eval_every_epochs == 0 or step + 1 == experiment.steps:
        readers = {f"student_{m}": net for m, net in enumerate(loop.students)}
        readers["hybrid"] = loop.hybrid
        found = {name: accuracy(net, test) for name, net in readers.items()}
        print(json.dumps({"epoch": epoch, "accuracy": found}), flush=True)
      loop.end_epoch(epoch - 1)


if __name__ == "__main__":
  main(sys.argv[1:])
