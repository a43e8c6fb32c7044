"""What runs do beyond one training: options of networks, fine-tuning, extending, faults."""

import contextlib
import doctest
import functools
import json
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest

import okdph_jax
from okdph_jax import data
from okdph_jax.experiment import fit as fit_module
from okdph_jax.experiment.config import load_config
from okdph_jax.experiment.fit import fit
from okdph_jax.main import main, parse
from okdph_jax.run import Run
from okdph_jax.runtime.signals import Interrupted
from okdph_jax.training.loop import Session
from tests import runs

DIGITS = "--config=configs/digits.py:"


def config(path, *more, method="dml"):
  asked, *_ = parse([DIGITS + method, *runs.options(path), *more, "--workdir=unused"])
  return asked


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return runs.arrays(tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
  """A run of base with one student, two epochs of two steps."""
  asked = config(
    images, "--config.method.students=1", "--config.views=('crop(1)',)", method="base"
  )
  return fit(asked, tmp_path_factory.mktemp("trained") / "run"), asked


def differently(asked, **options):
  asked = asked.copy_and_resolve_references()
  with asked.unlocked():
    asked.update(options)
  return asked


def refused(arguments, capsys):
  assert main(arguments) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1, said
  return said


# Networks with options, and of NNX.


def test_the_network_s_options_reach_it_and_are_kept(trained, tmp_path):
  _, asked = trained
  asked = differently(asked, network="tests.nets:Wide", network_options={"width": 5})
  result = fit(asked, tmp_path / "run")
  assert result.run.config["network_options"] == {"width": 5}
  network = result.run.network(network="tests.nets:Wide")
  assert network.variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 1, 5)


def test_options_come_from_the_command_line(images):
  asked = config(
    images, "--config.network_options.width=32", "--config.network_options.act=relu"
  )
  assert asked.network_options.to_dict() == {"width": 32, "act": "relu"}


def test_wrong_options_and_signatures_are_refused(images, tmp_path, capsys):
  start = [DIGITS + "dml", *runs.options(images), f"--workdir={tmp_path / 'run'}"]
  wide = "--config.network=tests.nets:Wide"
  said = refused([*start, wide, "--config.network_options.widht=5"], capsys)
  assert "no option 'widht'" in said and "did you mean 'width'" in said
  said = refused([*start, "--config.network=tests.nets:Narrow"], capsys)
  assert "Narrow(classes=K)" in said and "config.network_options" in said
  said = refused(
    [*start, "--config.network=resnet8", "--config.network_options.depth=5"], capsys
  )
  assert "'resnet8' has no option 'depth'" in said


def test_an_nnx_module_trains_and_loads(images, tmp_path):
  asked = config(images, "--config.network=tests.nets:Nnx", "--config.network_options.width=4")
  result = fit(asked, tmp_path / "run")
  learner = result.run.learner("last")
  assert learner.params["students"]["conv"]["kernel"].shape == (2, 3, 3, 1, 4)
  assert not np.allclose(learner.stats["students"]["norm"]["mean"], 0)
  network = result.run.network("student_1", network="tests.nets:Nnx")
  dataset = data.load(asked)
  right = (network(dataset.test.images).argmax(-1) == dataset.test.labels).mean()
  assert right == result.run.lines[-1]["accuracy"]["test"]["student_1"]


# Starting from a trained network.


@pytest.mark.parametrize("method", ["dml", "mean_teacher", "okdph"])
def test_all_students_start_from_it(trained, images, tmp_path, method):
  """At a vanishing learning rate they stay there; so does what the method averages."""
  source, _ = trained
  asked = config(images, f"--config.init_from={source.run.path}@last", method=method)
  asked = differently(asked, learning_rate=1e-12, snapshots=1)
  result = fit(asked, tmp_path / "run")
  start = source.run.network(which="last", network="tests.nets:Small").variables["params"]
  learner = result.run.learner("last")
  for n in range(len(learner.params["students"]["Dense_0"]["bias"])):
    mine = jax.tree.map(lambda leaf, n=n: leaf[n], learner.params["students"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mine, start)
  if method == "mean_teacher":
    mean = jax.tree.map(lambda leaf: leaf[0], learner.memory["teacher"]["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, start)


def test_branches_start_from_a_whole_network(images, tmp_path):
  net = "--config.network=resnet8"
  source = fit(config(images, net), tmp_path / "source")
  asked = config(
    images, net, f"--config.init_from={tmp_path / 'source'}:student_1", method="one"
  )
  result = fit(differently(asked, learning_rate=1e-12), tmp_path / "run")
  start = source.run.network("student_1").variables["params"]
  learner = result.run.learner("last")
  same = functools.partial(np.testing.assert_allclose, atol=1e-6)
  jax.tree.map(same, learner.params["shared"]["stem"], start["stem"])
  first = jax.tree.map(lambda leaf: leaf[0], learner.params["students"])
  jax.tree.map(same, first, start["branch"])


def test_other_classes_get_a_new_head_and_the_summary_says_so(trained, tmp_path, capsys):
  source, _ = trained
  other = runs.arrays(tmp_path / "data.npz", classes=5)
  asked = config(other, f"--config.init_from={source.run.path}")
  result = fit(asked, tmp_path / "run")
  said = capsys.readouterr().out
  assert f"student_0 of the tests.nets:Small in {source.run.path}" in said
  assert "new: Dense_0/bias, Dense_0/kernel" in said
  assert result.run.config["init_from"].startswith("../")
  assert result.run.network(network="tests.nets:Small").variables["params"]["Dense_0"][
    "bias"
  ].shape == (5,)


def test_a_start_that_fits_nowhere_is_refused(trained, images, tmp_path, capsys):
  start = [DIGITS + "dml", *runs.options(images), f"--workdir={tmp_path / 'run'}"]
  path = trained[0].run.path
  said = refused([*start, f"--config.init_from={path}", "--config.network=resnet8"], capsys)
  assert "user-defined network, tests.nets:Small" in said


# Extending.


def test_a_finished_run_goes_on_for_more_epochs_at_its_last_rate(trained, tmp_path, capsys):
  source, asked = trained
  run = Run(shutil.copytree(source.run.path, tmp_path / "run", symlinks=True))
  before, rates = run.lines, [line["learning_rate"] for line in run.lines]
  longer = differently(asked, epochs=4)
  result = fit(longer, run.path)
  assert "extended from 2 to 4 epochs" in capsys.readouterr().out
  assert run.lines[:2] == before
  assert [line["epoch"] for line in run.lines] == [1, 2, 3, 4]
  assert [line["learning_rate"] for line in run.lines] == [*rates, rates[-1], rates[-1]]
  assert ["extended_from_epochs" in line for line in run.lines] == [False, False, True, True]
  assert result.numbers["extended_from_epochs"] == 2 and result.numbers["epochs"] == 4
  assert fit(longer, run.path).numbers == result.numbers  # finished
  assert fit(differently(asked, epochs=5), run.path).numbers["extended_from_epochs"] == 2
  for other in (dict(epochs=3), dict(epochs=6, momentum=0.5)):
    with pytest.raises(ValueError, match="holds a run of another config"):
      fit(differently(asked, **other), run.path)
  assert run.result["epochs"] == 5


def test_an_extension_goes_on_after_an_interruption(trained, tmp_path, monkeypatch):
  source, asked = trained
  run = Run(shutil.copytree(source.run.path, tmp_path / "run", symlinks=True))

  @contextlib.contextmanager
  def in_the_third_epoch():
    yield lambda: len(run.lines) == 3

  with monkeypatch.context() as patch:
    patch.setattr(fit_module, "interruptible", in_the_third_epoch)
    with pytest.raises(Interrupted, match="the same command resumes the run"):
      fit(differently(asked, epochs=4), run.path)
  assert run.result is None and run.planned_epochs == 2
  assert fit(differently(asked, epochs=4), run.path).numbers["extended_from_epochs"] == 2


# Faults.


def test_other_data_are_refused_and_older_runs_go_on(trained, images, tmp_path, capsys):
  source, asked = trained
  run = Run(shutil.copytree(source.run.path, tmp_path / "run", symlinks=True))
  run.reopen()
  arrays = dict(np.load(images))
  other = tmp_path / "other.npz"
  for key, split in (("train_labels", "train"), ("test_images", "test")):
    np.savez(other, **(arrays | {key: arrays[key][::-1].copy()}))
    moved = asked.copy_and_resolve_references()
    moved.data.dir = str(other)
    with pytest.raises(ValueError, match=f"other data: the {split} split was") as refusal:
      fit(moved, run.path)
    assert "\n" not in str(refusal.value) and str(refusal.value).count("split was") == 1
  assert run.result is None
  record = run.record
  del record["fingerprint"]  # as earlier versions wrote it
  (run.path / "config.json").write_text(json.dumps(record))
  assert fit(moved, run.path).readers and run.record["fingerprint"]["test"]["images"] == 16
  assert run.result and run.result["fingerprint"] == run.record["fingerprint"]


def test_a_finished_run_of_other_images_is_not_the_result(trained, images, tmp_path):
  source, asked = trained
  run = Run(shutil.copytree(source.run.path, tmp_path / "run", symlinks=True))
  moved = asked.copy_and_resolve_references()
  moved.data.dir = str(shutil.copy(images, tmp_path / "copy.npz"))
  written = (run.path / "result.json").stat().st_mtime_ns
  assert fit(moved, run.path).readers == source.readers
  assert (run.path / "result.json").stat().st_mtime_ns == written
  with pytest.raises(ValueError, match="a run of another config"):
    fit(differently(moved, epochs=1), run.path)
  arrays = dict(np.load(images))
  moved.data.dir = str(tmp_path / "other.npz")
  np.savez(moved.data.dir, **arrays | {"test_labels": arrays["test_labels"][::-1].copy()})
  with pytest.raises(ValueError, match="was started with other data: the test split"):
    fit(moved, run.path)
  assert run.result


def test_a_teacher_of_other_images_is_said(trained, images, tmp_path, capsys):
  source, _ = trained
  lines = []
  for path in (images, tmp_path / "other.npz"):
    arrays = dict(np.load(images))
    arrays["train_labels"] = arrays["train_labels"][::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    student = config(path, f"--config.teacher={source.run.path}", method="kd")
    fit(student, tmp_path / path.stem)
    lines.append("trained on other images or labels" in capsys.readouterr().out)
  assert lines == [False, True]


def test_other_libraries_and_machines_are_said(trained, tmp_path, capsys):
  source, asked = trained
  run = Run(shutil.copytree(source.run.path, tmp_path / "run", symlinks=True))
  run.reopen()
  record = run.record
  record["environment"]["versions"]["optax"] = "0.0.1"
  record["environment"]["cores"] = 400
  (run.path / "config.json").write_text(json.dumps(record))
  assert fit(asked, run.path).readers == source.readers
  (line,) = [x for x in capsys.readouterr().out.splitlines() if "has changed" in x]
  assert "cores: 400 -> " in line and "optax: 0.0.1 -> " in line and "jax" not in line


def test_training_losses_are_logged_step_by_step_and_resume_exactly(
  images, tmp_path, monkeypatch
):
  asked = config(images, "--config.log_every_steps=1", "--config.views=('crop(1)',)")
  whole, resumed = fit(asked, tmp_path / "whole").run, Run(tmp_path / "resumed")
  assert [(line["step"], line["epoch"]) for line in whole.training] == [
    *((1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0))
  ]
  for line, pair in zip(whole.lines, (whole.training[:2], whole.training[2:]), strict=True):
    mean = np.mean([step["losses"]["loss"] for step in pair])
    np.testing.assert_allclose(line["losses"]["loss"], mean, rtol=1e-6)

  @contextlib.contextmanager
  def after_a_step():
    yield (resumed.path / "training.jsonl").exists

  with monkeypatch.context() as patch:
    patch.setattr(fit_module, "interruptible", after_a_step)
    patch.setattr(Session, "next_stop", lambda session: session.step + 1)
    with pytest.raises(Interrupted):
      fit(asked, resumed.path)
  assert resumed.training == whole.training[:1]
  with open(resumed.path / "training.jsonl", "a") as file:  # of a process that was killed
    file.write('{"step": 2, "epoch": 1.0, "losses": {"loss": 7.0}}\n{"step": 3, "ep')
  fit(differently(asked, log_every_steps=3), resumed.path)
  assert resumed.training == [whole.training[0], whole.training[2]]


@pytest.mark.parametrize("lost", ["deleted", "emptied", "the last", "its newline"])
def test_lost_metrics_cost_their_lines_and_not_the_run(trained, tmp_path, lost, capsys):
  """After the last evaluation, before result.json."""
  source, asked = trained
  run = Run(shutil.copytree(source.run.path, tmp_path / "run", symlinks=True))
  run.reopen()
  metrics = run.path / "metrics.jsonl"
  first, last = metrics.read_text().splitlines(keepends=True)
  if lost == "deleted":
    metrics.unlink()
  else:
    texts = {"emptied": "", "the last": first, "its newline": first + last[:-1]}
    metrics.write_text(texts[lost])
  result = fit(asked, run.path)
  said, lines = capsys.readouterr().out, runs.evaluations(run.path)
  assert ("lacks 1 evaluations, of steps 2 to 2" in said) == (lost in ("deleted", "emptied"))
  if lost == "its newline":
    assert lines == runs.evaluations(source.run.path)
  else:  # evaluated again; the losses since the line before are not known
    assert lines[-1]["accuracy"] == json.loads(last)["accuracy"]
    assert set(lines[-1]["losses"].values()) == {None} and "loss unknown" in said
  readers = [result.readers["student_0"], source.readers["student_0"]]
  assert readers[0]["last"] == readers[1]["last"]


class Killed(BaseException):
  """In place of kill -9."""


def test_a_line_without_its_checkpoint_is_written_again(trained, tmp_path, monkeypatch):
  """SIGTERM in an evaluation, then kill -9 between the resumed run's line and checkpoint."""
  source, asked = trained
  run = Run(tmp_path / "run")

  @contextlib.contextmanager
  def at_the_first_evaluation():
    calls = iter([False, False, True])  # looks after steps 1 and 2, and the evaluation
    yield lambda: next(calls, True)

  with monkeypatch.context() as patch:
    patch.setattr(fit_module, "interruptible", at_the_first_evaluation)
    with pytest.raises(Interrupted):
      fit(asked, run.path)
  save = Session.save

  def killed(session, accuracy=None):
    if accuracy is not None:
      raise Killed
    save(session)

  with monkeypatch.context() as patch:
    patch.setattr(Session, "save", killed)
    with pytest.raises(Killed):
      fit(asked, run.path)
  assert len(run.lines) == 1
  result = fit(asked, run.path)
  assert runs.evaluations(run.path) == runs.evaluations(source.run.path)
  assert result.readers == source.readers
  ours, theirs = (r.learner("last") for r in (run, source.run))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("times, raised", [(1, Interrupted), (2, KeyboardInterrupt)])
def test_an_interrupted_cell_of_a_notebook_is_run_again(
  trained, tmp_path, monkeypatch, request, times, raised
):
  """Once: at the next step, with a checkpoint. Twice: at once. Both leave a clean process."""
  source, asked = trained
  run, look, handler = Run(tmp_path / "run"), Session.look, signal.default_int_handler
  before = signal.signal(signal.SIGINT, handler)  # as in a notebook, whatever ran before
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

  def interrupted(session):
    look(session)
    for _ in range(times):
      signal.raise_signal(signal.SIGINT)
      time.sleep(0.01)  # its handler runs before the next one comes

  with monkeypatch.context() as patch:
    patch.setattr(Session, "look", interrupted)
    with pytest.raises(raised):
      fit(asked, run.path)
  assert signal.getsignal(signal.SIGINT) is handler
  assert not (run.path / "lock").exists()
  assert (run.path / "latest").exists() == (times == 1)
  assert fit(asked, run.path).readers == source.readers


def test_fit_runs_outside_the_main_thread_and_leaves_signals_alone(trained, tmp_path):
  result, asked = trained
  handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  found = []
  thread = threading.Thread(target=lambda: found.append(fit(asked, tmp_path / "run")))
  thread.start()
  thread.join()
  assert found[0].readers == result.readers
  assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


# The public names.


@pytest.fixture(scope="module")
def example(images, tmp_path_factory):
  """What the examples of the public names use: a config, images, and the config's run."""
  asked = config(images, "--config.network=resnet8")
  workdir = tmp_path_factory.mktemp("examples") / "run"
  fit(asked, workdir)
  return {
    "config": asked,
    "workdir": workdir,
    "images": np.load(images)["test_images"],
    "network": okdph_jax.load(workdir, "student_0"),
    "load_config": load_config,
  }


EXAMPLES = [  # a public name's own docstring, or that of a module's main function
  okdph_jax.fit,
  okdph_jax.load,
  okdph_jax.evaluate,
  okdph_jax.Run,
  okdph_jax.TrainedNetwork,
  okdph_jax.data.load,
  okdph_jax.hybridization.hybridize,
  okdph_jax.methods.assemble,
  okdph_jax.models.build,
  okdph_jax.views.make,
  load_config,
]


@pytest.mark.parametrize("public", EXAMPLES, ids=lambda public: public.__qualname__)
def test_the_examples_of_the_public_names_run(public, example, tmp_path):
  if public is fit:  # trains itself
    example = example | {"workdir": tmp_path / "run"}
  module = vars(sys.modules[public.__module__])
  flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
  (test,) = doctest.DocTestFinder(recurse=False).find(public, globs=module | example)
  assert test.examples
  assert doctest.DocTestRunner(optionflags=flags).run(test).failed == 0


def test_the_public_names():
  assert dir(okdph_jax) == sorted(okdph_jax.__all__)
  for name in okdph_jax.__all__:
    assert getattr(okdph_jax, name) is not None
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    okdph_jax.lod  # noqa: B018
