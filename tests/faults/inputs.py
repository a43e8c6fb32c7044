"""Malformed inputs by Hypothesis, at the front door: refused in one line, or taken."""

import contextlib
import io
import json
import math

import hypothesis
import ml_collections
import numpy as np
from hypothesis import strategies as st

from okdph_jax import data, views
from okdph_jax.cli.train import main
from okdph_jax.experiment import fit
from okdph_jax.experiment.build import check_options
from okdph_jax.experiment.config import check
from okdph_jax.experiment.options import OPTIONS
from okdph_jax.methods import METHODS, WRAPPERS, assemble
from okdph_jax.methods.protocol import Context
from okdph_jax.run import Run
from tests.methods import tiny

NUMBERS = st.one_of(
  st.integers(),
  st.integers(-(10**400), 10**400),
  st.floats(),
  st.sampled_from([0, -1, 1e-320, 1e308, 2**31, 2**63, 10**30, math.nan, math.inf]),
)
VALUES = st.recursive(
  st.one_of(NUMBERS, st.text(max_size=12), st.none(), st.booleans()),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.lists(inner, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=4), inner, max_size=3),
  ),
  max_leaves=6,
)
TEXTS = st.one_of(VALUES.map(repr), st.text(max_size=20), st.just("1e400"))
ARGUMENTS = st.one_of(NUMBERS.map(repr), TEXTS)
OPS = st.sampled_from(["crop", "flip", "rotate", "cutout", "noise", "any", "plain", "hflip"])
SPECS = st.lists(
  st.one_of(OPS, st.tuples(OPS, ARGUMENTS).map("({0[0]}({0[1]}))".format), TEXTS), max_size=3
).map("|".join)
KEYS = st.one_of(
  st.sampled_from([option.name for option in OPTIONS]),
  st.sampled_from(["method.omega", "method.students", "method.fuse_every", "data.x", "x"]),
  st.text(max_size=8),
)
COMMANDS = st.one_of(
  st.tuples(KEYS, TEXTS).map("--config.{0[0]}={0[1]}".format),
  SPECS.map(lambda spec: f"--config.views={(spec,)!r}"),
  st.tuples(st.sampled_from([*METHODS, "dlm"]), st.text(max_size=8), TEXTS).map(
    "--config=digits:{0[0]},{0[1]},{0[2]}".format
  ),
  st.tuples(st.sampled_from([*WRAPPERS, "x"]), st.sampled_from(["rho", "decay"]), VALUES).map(
    lambda w: f"--config.wrappers={({'name': w[0], w[1]: w[2]},)!r}"
  ),
  TEXTS,
)
JSON = st.one_of(
  VALUES.map(lambda value: json.dumps(value, default=str, skipkeys=True).encode()),
  st.binary(max_size=40),
)


def rehearse(config, workdir, **_):
  """What a run checks before it reads its data."""
  check(config)
  check_options(config)
  net = tiny.net(3)
  context = Context(net, 3, epoch_steps=23, epochs=20, teacher=(net, {}))
  assemble(context, config.method.to_dict(), [dict(w) for w in config.wrappers])
  views.check((*config.views, config.test_view), (8, 8, 1))


def command(arguments, folder):
  err = io.StringIO()
  with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
    code = main(["--config=digits", *arguments, f"--workdir={folder / 'run'}"])
  if code == 2:
    return None if err.getvalue().count("\n") == 1 else err.getvalue()
  return err.getvalue() or (f"exit code {code}" if code else None)


def file_of_a_run(found, folder):
  name, text = found
  run = Run(folder)
  (folder / name).write_bytes(text)
  try:
    return refusal(lambda: (run.lines, run.config, run.finished, run.class_names))
  finally:
    (folder / name).unlink()


def images(found, folder):
  dtype, shape, labels, names = found
  some = np.zeros(shape, dtype)
  parts = {"train_images": some, "train_labels": labels, "test_images": some}
  np.savez(folder / "data.npz", **parts, test_labels=labels, **names)
  options = dict(name="arrays", dir=str(folder / "data.npz"), train="train", test="test")
  options |= dict(fraction=1.0, replacement=False, validation=0, image_size=None)
  config = ml_collections.ConfigDict({"data": options})
  with contextlib.redirect_stdout(io.StringIO()):
    return refusal(lambda: data.load(config))


def refusal(call):
  """None where `call` returns, or raises a ValueError of one line."""
  try:
    call()
  except ValueError as error:
    return repr(error) if "\n" in str(error) else None
  return None


INPUTS = (  # (what, its inputs, what tries one, its share)
  ("options, configs and views", st.lists(COMMANDS, min_size=1, max_size=2), command, 0.7),
  (
    "files of a run",
    st.tuples(st.sampled_from(["config.json", "metrics.jsonl", "result.json"]), JSON),
    file_of_a_run,
    0.2,
  ),
  (
    "arrays of images",
    st.tuples(
      st.sampled_from(["u1", "i8", "f4", "bool", "U3", "c8"]),
      st.lists(st.integers(0, 4), max_size=5).map(tuple),
      st.one_of(
        st.lists(st.integers(-3, 300), max_size=4).map(np.array),
        st.lists(st.floats(), max_size=4).map(np.array),
        st.sampled_from([np.arange(2), np.array(2**40), np.array([["a"]]), np.array([2**40])]),
      ),
      st.sampled_from(
        [{}, {"class_names": np.array(["a", "a"])}, {"class_names": np.array(3)}]
      ),
    ),
    images,
    0.1,
  ),
)


def malformed_inputs(folder, count, seed):
  """Tries `count` inputs: yields what fell short of each, or None."""
  kept, fit.fit = fit.fit, rehearse
  try:
    for _, inputs, attempt, share in INPUTS:
      yield from tried(inputs, attempt, folder, max(1, round(count * share)), seed)
  finally:
    fit.fit = kept


def tried(inputs, attempt, folder, count, seed):
  found = []

  @hypothesis.seed(seed)
  @hypothesis.settings(
    max_examples=count,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(inputs)
  def try_one(given):
    try:
      failed = attempt(given, folder)
    except Exception as error:  # what no user may see
      failed = f"{type(error).__name__}: {error}"
    found.append(failed and f"{given!r:.300}: {failed}")

  try_one()
  return found
