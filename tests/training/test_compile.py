"""The compiled step: its numbers are arguments, and what comes later compiles in a thread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from okdph_jax.core import Batch
from okdph_jax.experiment.build import build
from okdph_jax.experiment.config import check
from okdph_jax.training.compile import Ahead, background, with_arguments
from okdph_jax.training.step import initial_state, train_step
from tests.experiment.test_configs import config_of, stand_in
from tests.methods import tiny

RATES = dict(learning_rate=0.03, momentum=0.8, weight_decay=2e-4, epochs=200)
OTHERS = {  # of every method and wrapper, all that is a float
  "okdph": dict(omega=0.4, beta=0.3, gamma=0.25, temperature=2.0, alpha=3.0),
  "base": dict(label_smoothing=0.2),
  "dml": {},
  "kdcl": dict(task_weight=0.7, distill_weight=0.2, temperature=5.0),
  "one": dict(temperature=2.0),
  "okddip": dict(temperature=2.0),
  "ffl": dict(temperature=2.0, fusion_weight_decay=3e-4),
  "pcl": dict(temperature=2.0, decay=0.9),
  "kr": {},
  "mean_teacher": dict(weight=3.0, decay=0.5),
}
WRAPPED = {
  "sam": dict(rho=0.2),
  "asam": dict(rho=0.3, eta=0.02),
  "swa": dict(learning_rate=0.004),
  "ema": dict(decay=0.9),
  "dot": dict(delta=0.05),
  "weighted": dict(task_weight=0.7, distill_weight=0.3),
}


def experiment_of(method, options, wrappers=(), **rates):
  config = config_of("cifar10", method)
  config.network = "tests.methods.tiny:net"
  config.wrappers, config.views = wrappers, ("plain",)  # traced in no time
  for name, value in rates.items():
    config[name] = value
  for name, value in options.items():
    config.method[name] = value
  check(config)
  return build(config, stand_in(config))


def lowered(experiment):
  """The program of a step, as text."""
  given, step = with_arguments(experiment.parts, experiment.numbers, experiment.augment)
  batch, key = batch_of(), jax.random.key(0)
  parts = experiment.parts(experiment.numbers)
  state = jax.eval_shape(lambda: initial_state(*parts, experiment.augment, batch, key))
  return jax.jit(step).lower(given, state, batch, key).as_text()


def batch_of():
  image = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
  return Batch(image, np.arange(4, dtype=np.int32))


@pytest.mark.parametrize("name", OTHERS)
def test_other_numbers_are_the_same_program(name):
  first = lowered(experiment_of(name, dict.fromkeys(OTHERS[name], 0.5)))
  assert lowered(experiment_of(name, OTHERS[name], milestones=(100, 200), **RATES)) == first


@pytest.mark.parametrize("name", WRAPPED)
def test_other_numbers_of_a_wrapper_are_the_same_program(name):
  own = dict(name=name) | dict.fromkeys(WRAPPED[name], 0.01)
  first = lowered(experiment_of("okdph", {}, (own,)))
  other = dict(name=name) | WRAPPED[name]
  assert lowered(experiment_of("okdph", {}, (other,), **RATES)) == first


def test_zero_and_one_stay_in_the_program():
  """With omega = 1 the hybrid's loss is not computed at all."""
  assert len(lowered(experiment_of("okdph", dict(omega=1.0)))) < len(
    lowered(experiment_of("okdph", {}))
  )


@pytest.mark.parametrize("name", ["okdph", "ffl", "mean_teacher"])
def test_a_step_is_that_of_constants(name):
  experiment = experiment_of(name, OTHERS[name], **RATES)
  batch, key = batch_of(), jax.random.key(3)
  given, step = with_arguments(experiment.parts, experiment.numbers, experiment.augment)
  parts = (*experiment.parts(experiment.numbers), experiment.augment)

  def plain(key):
    return train_step(*parts, initial_state(*parts, batch, key), batch, key)

  def traced(given, key):
    return step(given, initial_state(*parts, batch, key), batch, key)

  ours, theirs = tiny.jit(traced)(given, key), tiny.jit(plain)(key)
  compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(compare, ours[0].learner, theirs[0].learner)
  jax.tree.map(compare, ours[1], theirs[1])


def test_ahead_calls_what_a_thread_has_compiled():
  traces = []

  def double(x):
    traces.append(x.shape)
    return 2 * x

  with background() as thread:
    ahead = Ahead(jax.jit(double), size_of=len)
    for size in (3, 5):
      ahead.compile(thread, jnp.ones(size))
    for size in (3, 5, 3):
      assert ahead(jnp.ones(size)).sum() == 2 * size
  assert traces == [(3,), (5,)]
