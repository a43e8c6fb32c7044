"""Nonsense for every option of every method and wrapper: refused before anything is traced."""

import inspect
import math

import pytest

from okdph_jax.experiment.build import check_options
from okdph_jax.experiment.config import check, load_config
from okdph_jax.methods import METHODS, WRAPPERS, assemble
from okdph_jax.methods.protocol import Context
from tests.methods import tiny

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
    refused(option, value, {"name": name, option: value})


@pytest.mark.parametrize("name, option, kind", list(options(WRAPPERS)))
def test_a_wrapper_refuses_nonsense(name, option, kind):
  for value in NONSENSE[kind]:
    refused(option, value, {"name": "dml"}, [{"name": name, option: value}])


def refused(option, value, *asked):
  with pytest.raises(ValueError) as error:
    built(*asked)
  said = str(error.value)
  assert "\n" not in said and len(said) < 300, value
  assert option in said or "duration" in said or "steps;" in said or "at most" in said
