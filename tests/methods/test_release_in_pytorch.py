"""Our okdph with the release's four switches, step by step beside a loop in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from okdph_jax import models
from okdph_jax.core import Batch
from okdph_jax.experiment.paper import RELEASE
from okdph_jax.methods import METHODS
from okdph_jax.methods.protocol import Context
from okdph_jax.training.step import initial_state, train_step
from tests.methods import tiny

B, N, EPOCH, STEPS = 8, 2, 3, 7
RATES = dict(momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("fuse_every", ["2 steps", "1 epoch"])
def test_steps_are_those_of_the_pytorch_loop(fuse_every):
  torch = pytest.importorskip("torch")
  from benchmarks import torch_okdph
  from benchmarks.torch_step import NETWORKS

  options = RELEASE["okdph"] | dict(
    students=N, omega=0.7, beta=0.6, gamma=0.4, fuse_every=fuse_every
  )
  method = METHODS["okdph"](Context(models.build("resnet8", 10), 10, EPOCH, 3), **options)
  tx = method.optimizer(0.05, **RATES)
  views = np.random.default_rng(0).normal(size=(N + 1, B, 8, 8, 3)).astype(np.float32)
  batch = Batch(np.zeros((B, 8, 8, 3), np.uint8), np.arange(B, dtype=np.int32))

  def augment(key, image):
    return jnp.asarray(views)

  key = jax.random.key(0)
  state = tiny.jit(lambda: initial_state(method, tx, augment, batch, key))()
  step = tiny.jit(functools.partial(train_step, method, tx, augment))

  def loaded(variables):
    network = jax.tree.map(np.asarray, variables)
    return torch_okdph.load(NETWORKS["resnet8"](), network)

  first = jax.tree.map(lambda leaf: leaf[0], state.learner.students)
  networks = [loaded(first) for _ in range(N + 1)]
  loop = torch_okdph.Loop(networks, options, EPOCH, **RATES)
  seen, label = torch_okdph.channels_first(views), torch.arange(B)
  for t in range(STEPS):
    objective = loop.step(seen, label, t, 0.05)
    if (t + 1) % EPOCH == 0:
      loop.end_epoch(t // EPOCH)
    state, metrics = step(state, batch, key)
    np.testing.assert_allclose(objective, metrics["loss"], rtol=1e-4)
  readers = method.networks(state.learner)
  for name, network in zip(("student_0", "student_1", "hybrid"), networks, strict=True):
    want = loaded(readers[name])
    for a, b in zip(network.named_parameters(), want.parameters(), strict=True):
      np.testing.assert_allclose(a[1].detach(), b.detach(), rtol=2e-3, atol=2e-4, err_msg=a[0])
    for (at, a), b in zip(network.named_buffers(), want.buffers(), strict=True):
      if "mean" in at:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
      elif "var" in at:  # PyTorch's is unbiased: n / (n - 1) of ours, n >= 32
        np.testing.assert_allclose(a, b, rtol=0.04)
