"""How networks run in training: moments of parts of the batch, bfloat16, fewer collectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from benchmarks.accelerators import collectives
from okdph_jax.methods.okdph import okdph
from okdph_jax.methods.protocol import trained_as
from okdph_jax.nn.convolution import conv_general_dilated
from okdph_jax.nn.execution import Execution, executed
from okdph_jax.nn.students import run, start
from okdph_jax.runtime import host
from okdph_jax.training.step import initial_state, train_step
from tests.methods import tiny

IMAGES = 8


def step_of(execution, **options):
  """(parts, step, state, batch): a jitted step of tiny networks on two host devices."""
  mesh = host.mesh()
  everywhere = jax.NamedSharding(mesh, jax.P())
  method = trained_as(okdph(tiny.context()), execution)
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=5e-4)
  parts = method, tx, tiny.augment(3)
  batch = jax.device_put(tiny.batch(IMAGES), jax.NamedSharding(mesh, jax.P("data")))
  key = jax.device_put(jax.random.key(0), everywhere)
  state = tiny.jit(lambda key: initial_state(*parts, batch, key), out_shardings=everywhere)(key)
  step = tiny.jit(lambda *a: train_step(*parts, *a, **options), out_shardings=everywhere)
  return step, state, batch, key


def reductions(execution):
  step, *arguments = step_of(execution)
  return collectives(step.lower(*arguments).compile().as_text())


def test_moments_of_a_device_s_own_images_need_no_collective():
  """Two layers, forward and backward, of all networks at once; the gradients; the metrics."""
  whole, own = reductions(Execution()), reductions(Execution(moments_over=IMAGES // 2))
  assert set(whole) == set(own) == {"all-reduce"}
  assert len(own["all-reduce"]) <= len(whole["all-reduce"]) - 3
  assert len(own["all-reduce"]) <= 2


def test_groups_are_normalised_each_by_itself():
  norm = nn.BatchNorm(use_running_average=False, momentum=0.9)

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

  x = jax.random.normal(jax.random.key(0), (12, 3, 3, 2)) * 2 + 1
  variables = start(Net(), jax.random.key(0), x)
  with executed(Execution(moments_over=4)):
    y, stats = run(Net(), variables, x, train=True)
    short, _ = run(Net(), variables, x[:6], train=True)  # 4 does not divide it: one group
  inner = {kind: tree["BatchNorm_0"] for kind, tree in variables.items()}
  each = [norm.apply(inner, x[i : i + 4], mutable=["batch_stats"]) for i in (0, 4, 8)]
  np.testing.assert_allclose(y, np.concatenate([part for part, _ in each]), atol=1e-5)
  for name in ("mean", "var"):
    want = np.mean([new["batch_stats"][name] for _, new in each], 0)
    np.testing.assert_allclose(stats["BatchNorm_0"][name], want, rtol=1e-5)
  whole, _ = norm.apply(inner, x[:6], mutable=["batch_stats"])
  np.testing.assert_allclose(short, whole, atol=1e-5)


@pytest.mark.parametrize("compute", ["bfloat16", "products"])
def test_bfloat16_leaves_the_state_and_the_losses_alone(compute):
  step, state, batch, key = step_of(Execution(compute))
  plain, *_ = step_of(Execution())
  text = step.lower(state, batch, key).as_text()
  assert ("bf16[" in text or "xbf16" in text) == (compute == "bfloat16")
  after, metrics = step(state, batch, key)
  want, wanted = plain(state, batch, key)

  def kinds(tree):
    return jax.tree.map(lambda x: x.dtype, tree)

  assert kinds(after) == kinds(want) and kinds(metrics) == kinds(wanted)
  np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=0.02)
  assert metrics["loss"] != wanted["loss"]
  before = jax.tree.leaves(state.learner.params)
  ours, theirs = (
    np.concatenate(
      [np.ravel(a - b) for a, b in zip(jax.tree.leaves(s.learner.params), before, strict=True)]
    )
    for s in (after, want)
  )
  cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
  assert cosine > 0.99


@pytest.mark.parametrize("has", [True, False])
def test_products_alone_are_those_of_rounded_numbers(has, monkeypatch):
  """On a CPU, also where it has no instructions for them."""
  instructions = host.has_bfloat16()
  monkeypatch.setattr(host, "has_bfloat16", lambda: has and instructions)
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
  layout = ("NHWC", "HWIO", "NHWC")

  def convolve(x, kernel, precision):
    return jax.jit(
      lambda *a: conv_general_dilated(
        *a, (1, 1), "SAME", dimension_numbers=layout, precision=precision
      )
    )(x, kernel)

  rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, kernel)]
  want = convolve(*rounded, None)
  np.testing.assert_allclose(convolve(x, kernel, "bfloat16"), want, atol=1e-5)
