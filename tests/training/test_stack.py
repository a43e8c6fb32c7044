"""Runs that differ in their seeds, trained as one program: each is as if it were alone."""

import contextlib
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from okdph_jax.experiment import fit as fit_module
from okdph_jax.experiment.fit import fit, fit_seeds
from okdph_jax.main import main, parse
from okdph_jax.methods.okdph import okdph
from okdph_jax.run import Run
from okdph_jax.runtime.signals import Interrupted
from okdph_jax.training import stack
from okdph_jax.training.loop import Diverged, Session
from okdph_jax.training.step import train_step, without_sums, zero_sums
from tests import runs
from tests.methods import tiny

SEEDS = (5, 9)


# The step.


def step_of(method):
  tx = method.optimizer(lambda step: 0.1 / (1 + step), momentum=0.9, weight_decay=5e-4)
  parts = method, tx, tiny.augment(method.views)

  def step(given, state, batch, key):
    del given
    return train_step(*parts, state, batch, key)

  return functools.partial(without_sums, *parts), step


def test_a_step_of_several_runs_is_the_step_of_each():
  """In float64, over two fusions, with batches of their own."""
  with jax.enable_x64(True):
    start, one = step_of(okdph(tiny.context(), fuse_every="2 steps"))
    batches = [[tiny.batch(seed=10 * s + i) for i in range(4)] for s in SEEDS]
    keys = jnp.stack([jax.random.key(s) for s in SEEDS])

    def floating(x):
      return jnp.issubdtype(x.dtype, jnp.floating)

    double = functools.partial(
      jax.tree.map, lambda x: jnp.float64(x) if floating(x) else jnp.asarray(x)
    )

    @tiny.jit
    def begun(key, batch):
      state = start(batch, key)
      state = state.replace(learner=double(state.learner), opt_state=double(state.opt_state))
      zeros = zero_sums(functools.partial(one, None), state, double(batch), key)
      return state.replace(sums=zeros)

    alone = []
    step = tiny.jit(one)
    for key, own in zip(keys, batches, strict=True):
      state = begun(key, own[0])
      for batch in own:
        state, metrics = step(None, state, double(batch), key)
      alone.append((state, metrics))
    several = stack.Stack.of(2, jax.NamedSharding(jax.make_mesh((1,), "x"), jax.P()))
    state = several.join([begun(k, own[0]) for k, own in zip(keys, batches, strict=True)])
    together = tiny.jit(stack.over_runs(one))
    for of_step in zip(*batches, strict=True):
      state, metrics = together(None, state, tuple(map(double, of_step)), keys)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    for i, (ours, theirs) in enumerate(zip(several.split(state), alone, strict=True)):
      jax.tree.map(compare, ours.learner, theirs[0].learner)
      jax.tree.map(compare, ours.opt_state, theirs[0].opt_state)
      assert ours.step == theirs[0].step == 4 and ours.step.ndim == 0
      for name, value in metrics.items():  # float32
        np.testing.assert_allclose(value[i], theirs[1][name], rtol=1e-6)


def test_the_program_has_a_plain_convolution_per_network_and_still_a_condition():
  """As lowered for GPUs: nothing is grouped, and fusion is not computed in every step."""

  def program(runs):
    start, step = step_of(okdph(tiny.context()))
    batch, key = tiny.batch(), jax.random.key(0)
    state = jax.eval_shape(lambda: start(batch, key))
    if runs > 1:
      step, batch = stack.over_runs(step), (batch,) * runs
      key = jnp.stack([key] * runs)
      state = jax.eval_shape(lambda s: stack.Stack.of(runs, None).join([s] * runs), state)
    text = jax.jit(step).trace(None, state, batch, key).lower(lowering_platforms=("cuda",))
    text = text.as_text()
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
    assert set(groups) == {"1"} and "stablehlo.case" in text
    return text.count("stablehlo.convolution"), text.count("stablehlo.rsqrt")

  (plain, other), (several, same) = program(1), program(3)
  assert several == 3 * plain  # in one loop over all networks they would be slow
  assert same == other  # what is no convolution is one operation for all runs


# Whole runs.


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """`config(seed, *options)`: a network and its average, for two epochs of four steps."""
  path = runs.arrays(tmp_path_factory.mktemp("data") / "data.npz")

  def of(seed, *more):
    asked, _ = parse([*asked_for(path), f"--config.seed={seed}", *more, "--workdir=unused"])
    return asked

  return of


def asked_for(path):
  """Of the command line, but for seed and folder."""
  return [
    "--config=configs/digits.py:base",
    *runs.options(path),
    "--config.network=tests.nets:Stateless",
    "--config.method.students=1",
    "--config.wrappers=({'name':'ema'},)",
    "--config.views=('crop(1)',)",
    "--config.batch_size=8",
    "--config.log_every_steps=1",
  ]


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
  """The runs, one after another."""
  root = tmp_path_factory.mktemp("alone")
  return [fit(config(seed), root / f"seed{seed}").run for seed in SEEDS]


def folders(root):
  return [root / f"seed{seed}" for seed in SEEDS]


close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)


def check_numbers(run, single):
  """That a run has the numbers of one that was trained alone, up to the order of sums."""
  for which in ("last", "best-test"):
    jax.tree.map(close, run.learner(which), single.learner(which))
  for name in ("metrics.jsonl", "training.jsonl"):
    lines = [map(json.loads, (r.path / name).read_text().splitlines()) for r in (run, single)]
    for mine, theirs in zip(*lines, strict=True):
      times = ("seconds", "images_per_second")
      jax.tree.map(
        close, *({k: v for k, v in x.items() if k not in times} for x in (mine, theirs))
      )


def check(ours, alone):
  """That the runs are those that were trained alone: their numbers and their files."""
  for run, single in zip(map(Run, ours), alone, strict=True):
    check_numbers(run, single)
    assert run.result["config"] == single.result["config"]
    assert run.result["readers"].keys() == single.result["readers"].keys()
    close(run.result["flops_per_image"], single.result["flops_per_image"], rtol=0.02)
    changed = {"command", "environment"}
    assert {k: v for k, v in run.record.items() if k not in changed} == {
      k: v for k, v in single.record.items() if k not in changed
    }
    names = [{f.name.partition("events")[0] for f in r.path.iterdir()} for r in (run, single)]
    assert names[0] == names[1]
    assert not run.holder and run.checkpoint_steps == single.checkpoint_steps


@pytest.fixture(scope="module")
def together(config, tmp_path_factory):
  """The runs as one program, from the command line."""
  root = tmp_path_factory.mktemp("together")
  words = [*asked_for(config(0).data.dir), "--seeds=5,9", f"--workdir={root}/seed{{seed}}"]
  assert main(words) == 0
  return folders(root)


def test_each_run_is_as_if_it_were_alone(together, alone, config, capsys):
  check(together, alone)
  for run in map(Run, together):
    assert run.record["environment"]["runs_together"] == 2
    assert "--seeds=5,9" in run.record["command"]
  assert run.network("ema_student_0", network="tests.nets:Stateless").variables
  fit(config(SEEDS[1]), run.path)
  assert "is finished; nothing to do" in capsys.readouterr().out


@contextlib.contextmanager
def stopped_after(monkeypatch, steps):
  """Training is interrupted once so many steps are done."""
  session = {}
  look = Session.look

  def looked(self):
    session["step"] = self.step
    look(self)

  with monkeypatch.context() as patch:
    patch.setattr(Session, "look", looked)
    patch.setattr(
      fit_module,
      "interruptible",
      lambda: contextlib.nullcontext(lambda: session.get("step", 0) >= steps),
    )
    yield


def test_an_interruption_leaves_a_checkpoint_of_each_that_goes_on_alone(
  config, alone, tmp_path, monkeypatch, capsys
):
  asked, paths = [config(seed) for seed in SEEDS], folders(tmp_path)
  with stopped_after(monkeypatch, 1), pytest.raises(Interrupted, match="a checkpoint each"):
    fit_seeds(asked, paths)
  begun = [Run(path).checkpoint_steps for path in paths]
  assert begun[0] == begun[1] != set() and not any(Run(path).result for path in paths)
  fit(asked[0], paths[0])
  assert "runs_together: 2 -> 1" in capsys.readouterr().out
  with pytest.raises(ValueError, match="config.epochs is 2 and 3: train them one by one"):
    fit_seeds([asked[0], config(SEEDS[1], "--config.epochs=3")], paths)
  fit_seeds(asked, paths)  # the first is finished
  check(paths, alone)


class Killed(BaseException):
  """In place of kill -9."""


def test_a_kill_between_two_saves_and_a_run_that_diverges_cost_the_others_time_alone(
  config, alone, tmp_path, monkeypatch
):
  asked, paths = [config(seed) for seed in SEEDS], folders(tmp_path)
  save, look, evaluations = Session.save, Session.look, []

  def killed(session, accuracies=None):
    evaluations.append(accuracies)
    if len(evaluations) == 2:
      save(session, {0: accuracies[0]})
      raise Killed
    save(session, accuracies)

  with monkeypatch.context() as patch:
    patch.setattr(Session, "save", killed)
    with pytest.raises(Killed):
      fit_seeds(asked, paths)
  assert [Run(path).checkpoint_steps for path in paths] == [{4, 8}, {4}]

  def diverged(session):
    assert session.step > 4 and [len(Run(path).lines) for path in paths] == [1, 1]
    sums = session.state.sums
    session.state = session.state.replace(sums=sums | {"loss": sums["loss"].at[0].set(jnp.nan)})
    look(session)

  with monkeypatch.context() as patch:  # both go on from the checkpoint that both have
    patch.setattr(Session, "look", diverged)
    with pytest.raises(Diverged, match=rf"the loss of seed{SEEDS[0]} became NaN or infinite"):
      fit_seeds(asked, paths)
  assert [Run(path).checkpoint_steps for path in paths] == [{4}, {4}]
  assert "became NaN or infinite" in Run(paths[0]).failure and not Run(paths[1]).failure
  fit_seeds(asked[1:], paths[1:])
  check(paths[1:], alone[1:])


def test_runs_at_different_steps_are_refused_and_nothing_is_touched(config, alone, tmp_path):
  paths = folders(tmp_path)
  run = Run(shutil.copytree(alone[0].path, paths[0], symlinks=True))
  run.reopen()
  with pytest.raises(ValueError, match=r"at one step, .*seed5 at 8, .*seed9 at 0; train them"):
    fit_seeds([config(seed) for seed in SEEDS], paths)
  assert run.checkpoint_steps == {4, 8} and run.lines == alone[0].lines


def test_other_ways_to_compute_a_step_go_with_several_runs(config, alone, tmp_path):
  """Of four steps per epoch two at once; the network has no batch statistics."""
  more = "--config.views_on=host", "--config.steps_per_dispatch=2", "--config.accumulate=2"
  results = fit_seeds([config(seed, *more) for seed in SEEDS], folders(tmp_path))
  for result, single in zip(results, alone, strict=True):
    check_numbers(result.run, single)


def test_each_run_may_draw_images_of_its_own_and_stream_them(config, tmp_path):
  for i in range(32):
    folder = tmp_path / "data" / ("train" if i < 24 else "test") / "ab"[i % 2]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 9), 8 * i, np.uint8)).save(folder / f"{i}.png")

  def drawn(seed):
    options = f"name=folder dir={tmp_path}/data image_size=8 memory_limit=1 fraction=0.5"
    data = [f"--config.data.{option}" for option in (*options.split(), f"seed={seed}")]
    return config(seed, *data, "--config.epochs=1")

  results = fit_seeds([drawn(seed) for seed in SEEDS], folders(tmp_path))
  digests = {result.run.record["fingerprint"]["train"]["digest"] for result in results}
  assert len(digests) == 2
  check_numbers(results[1].run, fit(drawn(SEEDS[1]), tmp_path / "alone").run)


def test_what_cannot_go_together_is_refused_in_one_line(config, capsys):
  asked = asked_for(config(0).data.dir)
  for wrong, says in (
    (["--seeds=5,9", "--workdir=runs/x"], "such as '--workdir=runs/x-seed{seed}'"),
    (["--seeds=5,5"], "--seeds=5,5: give different whole numbers"),
    (["--seeds=a"], "--seeds=a: give different whole numbers"),
    (["--seeds=5,9", "--config.seed=3"], "--config.seed and --seeds: leave one of them out"),
    (
      ["--seeds=5,9", "--config.student_groups=2"],
      "student_groups=2 does not work with several seeds",
    ),
  ):
    assert main([*asked, *wrong]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
