"""The command line as a user meets it: runs killed and resumed, and wrong questions."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from okdph_jax.main import main
from okdph_jax.run import Run
from okdph_jax.training.timer import LOOK_EVERY
from tests.runs import evaluations

RUN = (  # 40 epochs of 5 steps, the last of each a short batch
  "--config=configs/digits.py",
  "--config.network=tests.nets:Small",
  "--config.data.fraction=0.2",
  "--config.epochs=40",
  "--config.eval_every_epochs=2",
  "--config.method.fuse_every=3 steps",
  "--config.checkpoint_every_minutes=0.01",
  "--config.snapshots=20",
)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
  """One compilation for all the processes here."""
  cache = tmp_path_factory.mktemp("xla")
  return os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def start(workdir, environment, *options):
  return subprocess.Popen(
    [sys.executable, "-m", "okdph_jax.main", *RUN, f"--workdir={workdir}", *options],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output, _ = process.communicate(timeout=600)
  return process.returncode, output


def kill_at(process, workdir, count, number):
  """Sends the signal once metrics.jsonl has `count` lines."""
  metrics = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 600
  while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
    time.sleep(0.005)
  process.send_signal(number)
  return finish(process)


def final_state(workdir):
  steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
  assert steps[-1] == 200
  with ocp.StandardCheckpointer() as checkpointer:
    (item,) = (workdir / "checkpoints" / "200").glob("*/manifest.ocdbt")
    return checkpointer.restore(item.parent)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, environment):
  workdir = tmp_path_factory.mktemp("runs") / "straight"
  code, output = finish(start(workdir, environment))
  assert code == 0, output
  return workdir, output


def test_a_killed_run_equals_an_uninterrupted_one_to_the_last_bit(
  finished, environment, tmp_path
):
  workdir = tmp_path / "killed"
  code, _ = kill_at(start(workdir, environment), workdir, 3, signal.SIGKILL)
  assert code == -signal.SIGKILL
  code, output = kill_at(start(workdir, environment), workdir, 8, signal.SIGTERM)
  assert code == 75 and "the same command resumes the run" in output, output
  code, output = kill_at(start(workdir, environment), workdir, 12, signal.SIGINT)
  assert code == 75 and "resuming from step" in output, output
  code, output = finish(start(workdir, environment))
  assert code == 0, output

  straight, _ = finished
  assert evaluations(workdir) == evaluations(straight)
  jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(straight))
  assert list(Run(workdir).snapshots) == [0, 100, 200]
  seconds = [json.loads(line)["seconds"] for line in open(workdir / "metrics.jsonl")]
  assert seconds == sorted(seconds)


def test_what_a_finished_run_leaves(finished):
  workdir, output = finished
  lines = evaluations(workdir)
  assert [line["step"] for line in lines] == list(range(10, 201, 10))
  assert [line["learning_rate"] for line in lines[::9]] == pytest.approx(
    [0.1, 0.1, 0.001], rel=1e-5
  )
  assert set(lines[0]["losses"]) == {"accuracy", "distill", "hybrid_accuracy", "loss", "task"}
  readers = {"student_0", "student_1", "hybrid", "center", "ensemble"}
  assert set(lines[-1]["accuracy"]["test"]) == readers
  result = json.loads((workdir / "result.json").read_text())
  assert set(result["readers"]) == readers
  assert [name for name, reader in result["readers"].items() if not reader["single"]] == [
    "ensemble"
  ]
  best = max(lines, key=lambda line: line["accuracy"]["test"]["hybrid"])
  assert result["readers"]["hybrid"]["best"] == best["accuracy"]["test"]["hybrid"]
  assert result["readers"]["hybrid"]["best_epoch"] == best["epoch"]
  assert (
    result["best_single"]["accuracy"] > 0.8 and result["best_single"]["chosen_on"] == "test"
  )
  assert result["readers"]["hybrid"]["at_best_validation"] is None
  assert (result["steps"], result["evaluations"], result["students"]) == (200, 20, 2)
  assert result["parameters"] == 2 * (9 * 8 + 16 + 8 * 64 * 10 + 10)
  assert any(p.name.startswith("events") for p in workdir.iterdir())
  for word in ("tests.nets:Small", "digits", "jax 0.", "best single network"):
    assert word in output
  assert output.count("s per step: about") == 1


def test_a_run_knows_its_command(finished):
  workdir, _ = finished
  words = shlex.split(Run(workdir).record["command"])
  assert words == ["okdph", "train", *RUN, f"--workdir={workdir}"]


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
  workdir, _ = finished
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
  assert main([*RUN, f"--workdir={workdir}"]) == 0
  assert "is finished" in capsys.readouterr().out
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p != workdir} == {
    p: t for p, t in before.items() if p != workdir
  }


def test_another_config_is_refused_with_what_differs(finished, capsys):
  workdir, _ = finished
  before = (workdir / "config.json").read_bytes()
  assert main([*RUN, "--config.method.omega=0.5", f"--workdir={workdir}"]) == 2
  said = capsys.readouterr().err
  assert "method.omega: 0.8 -> 0.5" in said and said.count("\n") == 1
  assert main([*RUN, "--config.checkpoint_every_minutes=5", f"--workdir={workdir}"]) == 0
  assert (workdir / "config.json").read_bytes() == before


D = "--config=configs/digits.py"
ARRAYS = (D, "--config.data.name=arrays", "--config.data.dir=/nowhere/a.npz")


@pytest.mark.parametrize(
  "arguments, says",
  [
    (
      ["--config=configs/cifar11.py"],
      ["no config file configs/cifar11.py", "configs/cifar10.py"],
    ),
    (["--config=cifar11"], ["no config file cifar11", "did you mean 'cifar10'"]),
    (["--config=/nowhere/mine.py"], ["no config file /nowhere/mine.py"]),
    (["--config=configs/cifar10.py:okdph,resnet32,2,3"], ["METHOD,NETWORK,STUDENTS"]),
    ([], ["--config=NAME"]),
    (["--config"], ["--config needs a value"]),
    ([D, "--confg.epochs=1"], ["confg.epochs", "did you mean '--config'"]),
    ([D, "--wrkdir=x"], ["did you mean '--workdir'"]),
    ([D, "--config.epoch=1"], ["no option 'epoch'", "did you mean 'epochs'"]),
    ([D, "--config.generation=2"], ["no option 'generation'", "did you mean 'generations'"]),
    ([D, "--config.data.fractoin=1"], ["did you mean 'data.fraction'"]),
    ([D, "--config.data={}"], ["config.data is a group of options"]),
    ([D, "--config.method.name=dlm"], ["dlm", "did you mean 'dml'"]),
    (
      [D, "--config.method.name=kr", "--config.method.students=2"],
      ["kr trains a single network"],
    ),
    (["--config=cifar10", "--config.method.students=5"], ["2, 3, 4 students", "config.views"]),
    ([D, "--config.data.test=train"], ["config.data.test and config.data.train"]),
    ([D, "--config.views=()"], ["config.views is empty"]),
    ([D, "--config.views=(1,)"], ["config.views has 1"]),
    ([D, "--config.milestones=(-1,)"], ["milestones has -1", "[0, 1e6]"]),
    ([D, "--config.milestones=((1,2),)"], ["milestones has (1, 2)"]),
    ([D, "--config.milestones=('soon',)"], ["'soon' is not a duration"]),
    ([D, "--config.method.gama=1"], ["gama", "gamma"]),
    ([D, "--config.epochs=ten"], ["epochs", "ten"]),
    ([D, "extra"], ["extra"]),
    (["--config=configs/digits.py:okdhp"], ["okdhp", "okdph"]),
    (["--config=configs/digits.py:okdph,resnet8,two"], ["two"]),
    ([D, "--config.method.name=okdhp"], ["okdhp", "base, "]),
    ([D, "--config.network=resnet33"], ["resnet33", "resnet32"]),
    ([D, "--config.network=tests.nets:Smal"], ["Smal", "Small"]),
    ([D, "--config.network=tests.nets:Broken"], ["tests.nets:Broken", "[2, 11]", "[2, 10]"]),
    ([D, "--config.network=tests.nets:Noisy"], ["tests.nets:Noisy", "noise"]),
    ([D, "--config.network=tests.nets:Untrainable"], ["fails on images", "not finished"]),
    ([D, "--config.views=('crop(1)','crop(1)','crp(1)')"], ["crp", "crop"]),
    (
      [D, "--config.views=('crop(1)','crop(1)')"],
      ["needs 3 views", "has 2", "one for all"],
    ),
    ([D, "--config.method.students=1"], ["at least 2", "students is 1"]),
    ([D, "--config.method.gamma=1.5"], ["gamma=1.5", "[0, 1]"]),
    ([D, "--config.data.fraction=0.0"], ["fraction is 0.0", "(0, 1]"]),
    ([D, "--config.epochs=0"], ["config.epochs is 0", "[1, 1000000]"]),
    ([D, "--config.seed=-1"], ["config.seed is -1", "[0, 4294967295]"]),
    ([D, f"--config.seed={2**32}"], ["config.seed is 4294967296", "[0, 4294967295]"]),
    ([D, "--config.learning_rate=-1.0"], ["learning_rate is -1.0", "[1e-30, 1e30]"]),
    ([D, "--config.milestones=(225,150)"], ["ascending"]),
    ([D, "--config.wrappers=({'name':'sham'},)"], ["sham"]),
    ([D, "--config.wrappers=(dict(name='swa'),)"], ["config.wrappers", "{'name':'swa'}"]),
    ([D, "--config.data.validation=5000"], ["validation", "1442"]),
    (list(ARRAYS), ["/nowhere/a.npz"]),
    ([D, "--config.data.name=folder", "--config.data.dir=/nowhere"], ["/nowhere"]),
    ([D, "--config.data.name=cifar12"], ["cifar12"]),
  ],
)
def test_what_cannot_be_run_is_told_in_one_line(arguments, says, tmp_path, capsys):
  assert main([*arguments, f"--workdir={tmp_path / 'a' / 'run'}"]) == 2
  said = capsys.readouterr().err
  assert said.startswith("okdph_jax: ") and said.count("\n") == 1, said
  for word in says:
    assert word in said
  assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  assert main([D, f"--workdir={tmp_path / 'file' / 'run'}"]) == 2
  said = capsys.readouterr().err
  assert "cannot write to --workdir" in said and said.count("\n") == 1


EARLY = """
import os, signal, sys
from okdph_jax.cli import train
from okdph_jax.runtime import signals
signals.hold()
os.kill(os.getpid(), signal.SIGTERM)
train.program(["--config=digits", f"--workdir={sys.argv[1]}"])
"""


def test_a_signal_before_jax_is_imported_stops_before_the_run_begins(tmp_path):
  command = [sys.executable, "-c", EARLY, str(tmp_path / "run")]
  done = subprocess.run(command, capture_output=True, text=True, timeout=600)
  assert done.returncode == 75 and "interrupted before a step" in done.stdout, done.stderr
  assert done.stderr.count("\n") == 1 and "SIGTERM: stopping" in done.stderr
  assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
  tmp_path, environment
):
  options = ("--config.learning_rate=1e30", "--config.eval_every_epochs=40")
  code, output = finish(start(tmp_path / "run", environment, *options))
  assert code == 1, output
  last = output.strip().splitlines()[-1]
  first, second = map(int, re.search(r"between steps (\d+) and (\d+),", last).groups())
  assert first < second <= first + LOOK_EVERY and first <= 1  # the first update breaks it
  assert "learning rate 1e+30" in last and "lower" in last
