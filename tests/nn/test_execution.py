"""How networks run in training: moments of parts of the batch, bfloat16, fewer collectives."""

import jax
import numpy as np
from flax import linen as nn

from benchmarks.accelerators import collectives
from okdph_jax.methods.okdph import okdph
from okdph_jax.methods.protocol import trained_as
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


def test_bfloat16_is_for_activations_alone():
  step, state, batch, key = step_of(Execution("bfloat16"))
  plain, *_ = step_of(Execution())
  text = step.lower(state, batch, key).as_text()
  assert "bf16" in text and "bf16" not in plain.lower(state, batch, key).as_text()
  after, metrics = step(state, batch, key)
  want, wanted = plain(state, batch, key)
  kinds = lambda tree: jax.tree.map(lambda x: x.dtype, tree)  # noqa: E731
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
