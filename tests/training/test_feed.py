"""Views that the host computes ahead are those that the step would compute."""

import json
import threading

import pytest

from okdph_jax.experiment.fit import fit
from okdph_jax.main import parse
from okdph_jax.training import loop, timer
from okdph_jax.training.compile import compile_steps
from okdph_jax.training.feed import AHEAD, ahead
from tests import runs

CLOCK = "seconds", "images_per_second"


def fitted(path, workdir, *more):
  config, *_ = parse(
    ["--config=configs/digits.py:okdph", *runs.options(path), *more, f"--workdir={workdir}"]
  )
  config.views = ("crop(1)|rotate(15)|noise(0.1)", "crop(1)|flip", "crop(1)|cutout(3)")
  return fit(config, workdir)


def test_a_run_has_the_same_numbers_wherever_its_views_are_computed(tmp_path):
  """Two devices; a short last batch, and swa, which looks at training images itself."""
  path = runs.arrays(tmp_path / "data.npz")
  more = ["--config.batch_size=12", "--config.wrappers=({'name':'swa','start':'1 epochs'},)"]
  fitted(path, tmp_path / "device", *more)
  fitted(path, tmp_path / "host", *more, "--config.views_on=host")
  assert runs.evaluations(tmp_path / "host") == runs.evaluations(tmp_path / "device")


def test_several_steps_of_a_dispatch_are_single_ones(tmp_path):
  """Five steps an epoch, the last one short: of three, one and one."""
  path = runs.arrays(tmp_path / "data.npz")
  more = ["--config.batch_size=7", "--config.log_every_steps=1"]
  fitted(path, tmp_path / "one", *more)
  fitted(path, tmp_path / "three", *more, "--config.steps_per_dispatch=3")
  for name in ("metrics.jsonl", "training.jsonl"):
    assert lines(tmp_path / "three" / name) == lines(tmp_path / "one" / name)


def test_many_steps_of_a_dispatch_are_dispatched_together(tmp_path, monkeypatch):
  """Also if there are fewer steps between two looks at the loss otherwise."""
  counts = []

  def counted(*arguments, **options):
    compiled = compile_steps(*arguments, **options)

    def advance(state, batches, key):
      counts.append(len(batches))
      return compiled.advance(state, batches, key)

    return compiled._replace(advance=advance)

  monkeypatch.setattr(loop, "compile_steps", counted)
  path = runs.arrays(tmp_path / "data.npz")
  more = ["--config.batch_size=1", "--config.steps_per_dispatch=15"]
  more += ["--config.epochs=6", "--config.eval_every_epochs=6"]
  monkeypatch.setattr(timer, "LOOK_EVERY", 10)
  fitted(path, tmp_path / "run", *more)
  assert sum(counts) == 6 * 32 and counts.count(15) == 12  # two in each epoch of 32 steps


def lines(path):
  found = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in line.items() if k not in CLOCK} for line in found]


def test_the_next_steps_are_prepared_in_a_thread_and_a_jump_drops_them():
  asked, done = [], threading.Event()

  def prepare(step):
    asked.append((step, threading.current_thread()))
    if step == AHEAD:
      done.set()
    return step

  batch = ahead(prepare)
  assert batch(0) == 0 and done.wait(10)
  assert batch(1) == 1 and batch(50) == 50
  assert threading.main_thread() not in {thread for _, thread in asked}
  steps = [step for step, _ in asked]
  assert steps == sorted(set(steps)) and steps[: AHEAD + 1] == [*range(AHEAD + 1)]


def test_a_failure_is_raised_where_the_batch_is_asked_for():
  def prepare(step):
    raise ValueError(f"no batch {step}")

  with pytest.raises(ValueError, match="no batch 3"):
    ahead(prepare)(3)
