"""The options of methods and wrappers: their defaults, and nonsense for every one of them."""

import inspect
import math
import re

import pytest

from okdph_jax.experiment.build import check_options
from okdph_jax.experiment.config import check, defaults, load_config
from okdph_jax.methods import METHODS, WRAPPERS, assemble
from okdph_jax.methods.protocol import (
  Context,
  check_fraction,
  check_nonnegative,
  check_positive,
  check_students,
)
from okdph_jax.optimizers import dot_sgd, sgd
from okdph_jax.training.step import train_step
from tests.methods import tiny

DEFAULTS = {  # as the docstrings give them, from the papers and their official codes
  "base": dict(students=1, label_smoothing=0.0, same_init=False),
  "kd": dict(task_weight=1.0, distill_weight=1.0, temperature=3.0, targets="soft"),
  "dml": dict(students=2, same_init=False),
  "one": dict(students=3, temperature=3.0, detach_target=True),
  "kdcl": dict(
    students=2,
    target="minlogit",
    task_weight=1.0,
    distill_weight=1.0,
    temperature=2.0,
    same_init=False,
  ),
  "okddip": dict(students=3, temperature=3.0, detach_mean=False),
  "ffl": dict(students=2, temperature=3.0, fusion_weight_decay=1e-5),
  "pcl": dict(students=3, temperature=3.0, decay=0.999),
  "kr": dict(temperature=2.0, fade=True, distances=None),
  "mean_teacher": dict(weight=10.0, decay=0.99),
  "okdph": dict(
    students=2,
    omega=0.8,
    beta=0.8,
    gamma=0.5,
    temperature=4.0,
    fuse_every="1 epoch",
    fuse_clock="run",
    fuse_with="updated",
    weights="dirichlet",
    alpha=1.0,
    hybrid_gradient=True,
    same_init=True,
    hybrid_teaches=True,
  ),
  "sam": dict(rho=0.05),
  "asam": dict(rho=0.5, eta=0.01),
  "swa": dict(start=241, learning_rate=0.001),
  "ema": dict(decay=0.999),
  "dot": dict(delta=0.075),
  "weighted": dict(task_weight=1.0, distill_weight=1.0),
  "gradient_cosine": {},
  "reestimate": dict(readers=()),
}
HUGE = (10**31, -(10**31), 1e31, math.inf, -math.inf, math.nan)
OTHER = (None, (1,), {}, [], "", "a word")
NONSENSE = {
  int: (*HUGE, *OTHER, -1, 2.5, True),
  float: (*HUGE, *OTHER, -1, -0.5, True),
  bool: (*HUGE, *OTHER, 2, 1.0),
  str: (*HUGE, *OTHER, 3, 0.5, True),
  int | str: (*HUGE, *OTHER, -1, 0, True, "0 epochs", "-3 steps", f"{10**30} epochs"),
  float | tuple: (*HUGE, None, {}, [], "", "a word", (), ("x",), (-1,), -1, True),
  tuple[str, ...]: (*HUGE, None, {}, "", "a word", 3, True),
}


def test_defaults_stay_what_finished_runs_were_trained_with():
  assert {name: defaults(builder) for name, builder in (METHODS | WRAPPERS).items()} == DEFAULTS
  rates = dict(momentum=0.9, weight_decay=5e-4, nesterov=False)
  assert defaults(sgd) == rates
  assert defaults(dot_sgd) == rates | {"delta": inspect.Parameter.empty}
  assert defaults(train_step) == {"accumulate": 1}


def test_the_ends_of_the_ranges_are_inside():
  for value in (1e-30, 1e30):
    check_positive("m", x=value)
  for value in (0, 1e30):
    check_nonnegative("m", x=value)
  for value in (0, 1):
    check_fraction("m", x=value)
  for students in (2, 100):
    check_students("m", students)
  dot_sgd(0.1, momentum=0.05, delta=0.05)
  WRAPPERS["swa"](METHODS["base"](tiny.context()), tiny.context(), start=10**6)


def options(table):
  for name, builder in table.items():
    for parameter in inspect.signature(builder).parameters.values():
      if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not None:
        yield name, parameter.name, parameter.annotation


def built(method, wrappers=()):
  config = load_config("digits:base")
  config.method, config.wrappers = dict(method), tuple(wrappers)
  check(config)
  check_options(config)
  net = tiny.net(3)
  context = Context(net, 3, epoch_steps=23, epochs=20, teacher=(net, {}))
  assemble(context, config.method.to_dict(), config.wrappers)


@pytest.mark.parametrize("name, option, kind", list(options(METHODS)))
def test_a_method_refuses_nonsense(name, option, kind):
  for value in NONSENSE[kind]:
    refused(name, option, value, {"name": name, option: value})


@pytest.mark.parametrize("name, option, kind", list(options(WRAPPERS)))
def test_a_wrapper_refuses_nonsense(name, option, kind):
  for value in NONSENSE[kind]:
    refused(name, option, value, {"name": "dml"}, [{"name": name, option: value}])


def refused(name, option, value, *asked):
  with pytest.raises(ValueError) as error:
    built(*asked)
  said = str(error.value)
  assert "\n" not in said and len(said) < 300, value
  if "duration" in said or "steps;" in said:
    return
  assert re.search(rf"\b{name}\b", said)
  assert re.search(rf"\b{option}\b", said) or "at most" in said
