"""The runs of one config, and what a step costs."""

import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from okdph_jax.experiment import fit
from okdph_jax.experiment.config import load_config
from okdph_jax.main import main
from okdph_jax.nn import students
from okdph_jax.run import Run
from okdph_jax.runtime import host
from okdph_jax.training.compile import flops_of
from tests import runs


def test_generations_teach_each_other_and_go_on_after_an_interruption(
  tmp_path, monkeypatch, capsys
):
  first, second = (tmp_path / "run" / f"generation_{k}" for k in range(2))
  command = [
    "--config=configs/digits.py:kd",
    *runs.options(runs.arrays(tmp_path / "data.npz")),
    "--config.generations=2",
    f"--workdir={tmp_path / 'run'}",
  ]

  @contextlib.contextmanager
  def in_the_second():
    yield (second / "config.json").exists

  with monkeypatch.context() as patch:
    patch.setattr(fit, "interruptible", in_the_second)
    assert main(command) == 75
  assert (first / "result.json").exists() and not (second / "result.json").exists()
  before = (first / "checkpoints").stat().st_mtime_ns
  capsys.readouterr()
  assert main(command) == 0
  said = capsys.readouterr().out
  assert f"{first} is finished" in said and "generation_1" in said
  assert f"student_0 of the tests.nets:Small in {first}, step 4 (last)" in said
  assert (first / "checkpoints").stat().st_mtime_ns == before

  configs = [json.loads((run / "config.json").read_text())["config"] for run in (first, second)]
  assert [config["seed"] for config in configs] == [42, fit.generation_seed(42, 1)]
  assert [config["method"]["name"] for config in configs] == ["base", "kd"]
  assert [config["teacher"] for config in configs] == ["", "../generation_0"]
  taught = jax.tree.map(lambda leaf: leaf[0], Run(first).learner("last").students)
  held = Run(second).learner("best-test").memory["teacher"]
  jax.tree.map(np.testing.assert_array_equal, held, taught)


def test_a_teacher_s_own_network_is_that_of_the_first_generation_s_teacher(tmp_path):
  config = load_config("digits:kd", [("generations", "3"), ("teacher", "runs/large")])
  config.network, config.teacher_network = "tests.nets:Small", "tests.nets:Large"
  found = [one.teacher_network for one, _ in fit.generations(config, tmp_path)]
  assert found == ["tests.nets:Large", "", ""]


def test_generations_of_any_seeds_share_none():
  seeds = [fit.generation_seed(seed, k) for seed in range(40, 60) for k in range(5)]
  assert len(set(seeds)) == 100 and all(0 <= seed < 2**32 for seed in seeds)
  assert fit.generation_seed(42, 0) == 42  # the seed of the same network without generations


def test_flops_that_cannot_be_counted_are_none():
  """A callback to the host cannot be lowered for a TPU; the run itself goes on."""

  def step(x):
    jax.debug.print("{}", x)
    return 2 * x

  assert flops_of(jax.jit(step).trace(jnp.float32(1)), step, jnp.float32(1)) is None


def test_flops_of_convolutions_on_two_devices():
  """Three passes of two 3x3 convolutions in two networks, both devices together, no padding."""

  class Two(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.Conv(16, (3, 3), use_bias=False)(x)
      return jnp.square(nn.Conv(16, (3, 3), use_bias=False)(x)).mean((1, 2))

  mesh = host.mesh(2)
  net, image = (
    Two(),
    jax.ShapeDtypeStruct(
      (2, 8, 12, 12, 16),
      jnp.float32,
      sharding=NamedSharding(mesh, PartitionSpec(None, "data")),
    ),
  )
  keys = jax.random.split(jax.random.key(0), 2)
  stack = jax.eval_shape(lambda: students.stack(net, keys, jnp.zeros(image.shape[1:])))

  def loss(params, image):
    variables = {"params": params, "batch_stats": {}}
    return students.each(net, variables, image, train=True)[0].sum()

  step = jax.grad(loss, argnums=(0, 1))
  program = jax.jit(step).trace(stack["params"], image)
  passes = 3 * 2 * 2 * 8 * (3 * 12 - 2) ** 2 * 16 * 16 * 2
  np.testing.assert_allclose(flops_of(program, step), passes, rtol=0.02)
  lowered = types.SimpleNamespace(cost_analysis=lambda: None)  # as on accelerators
  elsewhere = types.SimpleNamespace(lower=lambda **_: lowered)
  np.testing.assert_allclose(
    flops_of(elsewhere, step, stack["params"], image), passes, rtol=0.02
  )
