"""The processes of a sweep: which start, on which cores, and what becomes of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from okdph_jax.cli import dispatch
from okdph_jax.experiment.fit import generations
from okdph_jax.experiment.summary import resolve
from okdph_jax.run import Run
from okdph_jax.runtime import signals
from okdph_jax.status import status
from okdph_jax.sweep import slurm
from okdph_jax.sweep.cells import read
from okdph_jax.sweep.runner import Runner, is_finished, slots
from tests import runs

# In place of `okdph train`: does as the folder's name says.
PROGRAM = """
import json, os, pathlib, signal, sys, time
options = dict(word.split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(options["--workdir"])
run.mkdir(exist_ok=True)
with open(run / "started", "a") as file:
  print(*sorted(os.sched_getaffinity(0)), file=file)
print("working", flush=True)
name = run.name.partition("-seed")[0]
if name == "stacked":  # 43 diverges, and the others go on without it
  runs = [pathlib.Path(str(run).replace("{seed}", s)) for s in options["--seeds"].split(",")]
  if len(runs) > 2:
    (runs[1] / "error.txt").write_text("the loss became NaN")
    sys.exit("okdph_jax: the loss became NaN")
  for run in runs:
    (run / "result.json").write_text((run.parent.parent / f"{run.name}.json").read_text())
  sys.exit(0)
if name == "fails":
  sys.exit("okdph_jax: no such thing; do another")
if name == "dies":
  os.kill(os.getpid(), signal.SIGKILL)
if name == "waits":
  signal.signal(signal.SIGTERM, lambda *_: ((run / "saved").touch(), sys.exit(75)))
  time.sleep(60)
if name == "interrupted" and not (run / "once").exists():
  (run / "once").touch()
  sys.exit(75)
(run / "result.json").write_text((run.parent.parent / f"{run.name}.json").read_text())
"""
DRIVER = """
import sys
import threading
from okdph_jax.cli.sweep import main
from okdph_jax.sweep import runner
runner.PROGRAM, runner.LOOK_SECONDS = (sys.executable, sys.argv[1]), 0.2
sys.exit(main(sys.argv[2:]))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks for Linux's calls")


@pytest.fixture
def sweep(tmp_path):
  """sweep(entries, *options): the process of a sweep over the stand-in, with runs in `root`."""
  (tmp_path / "driver.py").write_text(DRIVER)
  (tmp_path / "program.py").write_text(PROGRAM)

  def start(entries, *options):
    file = tmp_path / "mine.py"
    file.write_text(f"def get_sweep():\n  return {entries!r}\n")
    for cell in read(str(file), tmp_path / "root", 3):
      (tmp_path / f"{cell.name}.json").write_text(result_of(cell))
    command = ["driver.py", "program.py", "mine.py", f"--root={tmp_path}/root", *options]
    return subprocess.Popen(
      [sys.executable, *command],
      cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return start


def result_of(cell):
  """The result.json that the stand-in writes."""
  return result_in(cell.config, cell.run.path)


def result_in(config, folder):
  result = {
    "config": resolve(config, folder),
    "seed": config.seed,
    "epochs": 20,
    "evaluations": 10,
    "readers": {"hybrid": {"single": True, "last": 0.5, "best": 0.5, "best_epoch": 3.0}},
    "best_single": {"reader": "hybrid", "accuracy": 0.5, "epoch": 3.0, "chosen_on": "test"},
  }
  return json.dumps(result)


def entry(**options):
  return {"config": "digits:base,resnet8"} | options


def started(root):
  return {file.parent.name: file.read_text().splitlines() for file in root.glob("*/started")}


def wait_for(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@linux
def test_what_becomes_of_each_cell(sweep, tmp_path):
  taught = dict(config="digits:kd,resnet8")
  entries = {
    "interrupted": entry(),
    "fails": entry(),
    "student": taught | {"teacher": "interrupted"},
    "orphan": taught | {"teacher": "fails"},
    "dies": entry(),
    "fine": entry(),
    "damaged": entry(),
  }
  damaged = tmp_path / "root" / "damaged-seed42"
  damaged.mkdir(parents=True)
  (damaged / "result.json").write_text("{")
  root, cores = tmp_path / "root", os.sched_getaffinity(0)
  jobs = min(2, len(cores))
  output, _ = (process := sweep(entries, f"--jobs={jobs}")).communicate(timeout=120)
  assert process.returncode == 1, output
  begun = started(root)
  assert {name: len(lines) for name, lines in begun.items()} == {
    "student-seed42": 1,
    "interrupted-seed42": 2,  # goes on by itself
    "fails-seed42": 1,
    "dies-seed42": 1,
    "fine-seed42": 1,
    "damaged-seed42": 1,  # the stand-in repairs it
  }
  parts = {line for lines in begun.values() for line in lines}
  assert len(parts) == jobs and all(len(p.split()) == len(cores) // jobs for p in parts)
  for line in (
    "finished: student-seed42: best single network hybrid 0.5000 at epoch 3, chosen on test",
    "failed: fails-seed42: no such thing; do another",
    "failed: dies-seed42: killed by SIGKILL; its last line: working",
    f"failed: orphan-seed42: its teacher, {root}/fails-seed42, is neither finished nor",
    "4 of 7 runs done, 0 running, 3 failed",
  ):
    assert line in output
  assert "Warning" not in output, output  # no fork of a process with threads
  assert Run(root / "fails-seed42").failure == "no such thing; do another"
  assert "working" in (root / "dies-seed42" / "log.txt").read_text()

  output, _ = sweep(entries, "--only=entry=fine,entry=fails").communicate(timeout=120)
  assert output.startswith("1 of 2 runs done") and "failed: fails-seed42" in output
  assert len(started(root)["fine-seed42"]) == 1 and len(started(root)["fails-seed42"]) == 2


@linux
def test_seeds_in_one_process(sweep, tmp_path):
  output, _ = (
    process := sweep({"stacked": entry()}, "--seeds=3", "--stack-seeds")
  ).communicate(timeout=120)
  assert process.returncode == 1, output
  root = tmp_path / "root"
  assert "failed: stacked-seed43: the loss became NaN\n" in output
  for seed in (42, 44):
    assert f"finished: stacked-seed{seed}: best single network hybrid" in output
  assert "2 of 3 runs done, 0 running, 1 failed" in output
  logs = [(root / f"stacked-seed{seed}" / "log.txt").read_text() for seed in (42, 43, 44)]
  assert logs[0] == logs[2] == logs[1] + "working\n"
  assert len(started(root)["stacked-seed{seed}"]) == 2  # processes


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_sweep_stops_its_runs_with_checkpoints(sweep, tmp_path, number):
  process = sweep({"waits": entry()}, "--seeds=2")
  run = tmp_path / "root" / "waits-seed42"
  wait_for((run / "started").exists)
  process.send_signal(number)
  output, _ = process.communicate(timeout=60)
  wait_for((run / "saved").exists)
  assert not (tmp_path / "root" / "waits-seed43").exists()
  if number != signal.SIGKILL:
    assert process.returncode == 75 and "0 of 2 runs done, 0 running, 0 failed" in output


def test_a_cell_that_another_process_holds_is_left_to_it(sweep, tmp_path):
  run = Run(tmp_path / "root" / "fine-seed42")
  with run.locked():
    process = sweep({"fine": entry()})
    assert "0 of 1 runs done, 0 running, 1 running elsewhere" in process.stdout.readline()
    time.sleep(1)
    (run.path / "result.json").write_text((tmp_path / "fine-seed42.json").read_text())
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0 and "1 of 1 runs done" in output
  assert started(tmp_path / "root") == {}


@linux
def test_more_jobs_than_cores_or_devices_are_refused(monkeypatch):
  with pytest.raises(
    ValueError, match=r"--jobs=5000, but there are only \d+ cores; choose at most that many"
  ):
    slots(5000)
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3, 5, 7, 9})
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
  parts = [(slot.cores, slot._environment) for slot in slots(2)]
  assert parts == [
    ([1, 3], {"CUDA_VISIBLE_DEVICES": "4"}),
    ([5, 7], {"CUDA_VISIBLE_DEVICES": "5"}),
  ]
  with pytest.raises(ValueError, match="there are only 2 devices in CUDA_VISIBLE_DEVICES"):
    slots(3)


def test_the_command_line(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  asked = ["sweep", "digits", "--only=method=dml", "--seeds=2", "--config.epochs=3", "--print"]
  assert dispatch(asked) == 0
  assert capsys.readouterr().out.splitlines() == [
    "okdph train --config=digits:dml,resnet8 --config.epochs=3 --config.seed=42 "
    "--workdir=runs/digits/dml-seed42",
    "okdph train --config=digits:dml,resnet8 --config.epochs=3 --config.seed=43 "
    "--workdir=runs/digits/dml-seed43",
  ]
  assert dispatch(["sweep", "cifar10_small", "--only=entry=base3", "--seeds=1", "--print"]) == 0
  assert "'--config.views=('\"'\"'hflip'" in capsys.readouterr().out  # quoted for a shell
  for wrong, says in (
    (["--seeds=0"], "--seeds=0: at least 1 is needed"),
    (["--jobs=-1"], "--jobs=-1: at least 1 is needed"),
    (["--config=digits"], "a sweep has the configs of its file"),
    (["--config.epoch=3"], "the config has no option 'epoch'; did you mean 'epochs'"),
    (["--onyl=method=dml"], "is not an option; did you mean '--only'"),
  ):
    assert dispatch(["sweep", "digits", "--print", *wrong]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_digits_sweep(tmp_path):
  """From the command line to its result, on small images."""
  images = runs.arrays(tmp_path / "data.npz")
  done = subprocess.run(
    [
      *(sys.executable, "-m", "okdph_jax", "sweep", "digits", f"--root={tmp_path / 'root'}"),
      *("--only=entry=base", "--seeds=1", *runs.options(images)),
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert re.search(r"finished: base-seed42: .* chosen on test\n1 of 1 runs done", done.stdout)
  run = Run(tmp_path / "root" / "base-seed42")
  assert run.result["seed"] == 42 and status(run).state == "finished"
  assert "the run is in" in (run.path / "log.txt").read_text()


def test_a_run_of_several_generations_is_finished_with_the_last_and_held_with_any(tmp_path):
  file = tmp_path / "mine.py"
  entries = {"born": {"config": "digits:kd,resnet8", "generations": 2}}
  file.write_text(f"def get_sweep():\n  return {entries!r}\n")
  [cell] = read(str(file), tmp_path)
  first, second = (run.path for run in cell.runs)
  for config, folder in generations(cell.config, cell.run.path):
    assert not is_finished(cell) and cell.current.path == Path(folder)
    with Run(folder).locked():
      assert cell.holder
    Path(folder).mkdir(parents=True)
    (Path(folder) / "result.json").write_text(result_in(config, folder))
  assert is_finished(cell) and not cell.holder and cell.current.path == second
  (first / "result.json").unlink()
  assert not is_finished(cell)


def test_jobs_of_submitit(tmp_path, monkeypatch):
  """By its executor of processes on this machine; Slurm itself is not here."""
  pytest.importorskip("submitit")
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)
  monkeypatch.setattr(slurm, "PROGRAM", (sys.executable, str(program)))
  file, root = tmp_path / "mine.py", tmp_path / "root"
  entries = {"fine": entry(), "student": entry(config="digits:kd,resnet8", teacher="fine")}
  file.write_text(f"def get_sweep():\n  return {entries!r}\n")
  found = read(str(file), root)
  for cell in found:
    cell.run.path.mkdir(parents=True)
    (tmp_path / f"{cell.name}.json").write_text(result_of(cell))
  assert slurm.submit(found[1:], root, "cluster=local") == {}  # its teacher runs elsewhere
  jobs = slurm.submit(found, root, "cluster=local,timeout_min=5")
  assert list(jobs) == ["fine-seed42", "student-seed42"]
  wait_for((root / "student-seed42" / "result.json").exists)
  assert (root / "fine-seed42" / "started").exists()  # it was the stand-in
  assert slurm.submit(found, root, "cluster=local") == {}  # all is finished
  for options, says in (("cluster=slurm", "srun"), ("cluster=local,gpu=1", "gpu")):
    (root / "fine-seed42" / "result.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=rf"--slurm={options}: .*{says}") as refusal:
      slurm.submit(found, root, options)
    assert "\n" not in str(refusal.value)


def test_a_chain_whose_first_teacher_runs_elsewhere_is_not_submitted(tmp_path):
  pytest.importorskip("submitit")
  kd = dict(config="digits:kd,resnet8")
  file, root = tmp_path / "mine.py", tmp_path / "root"
  entries = {"first": entry(), "second": entry(**kd, teacher="first")}
  entries["third"] = entry(**kd, teacher="second")
  file.write_text(f"def get_sweep():\n  return {entries!r}\n")
  _, *students = read(str(file), root)
  assert slurm.submit(students, root, "cluster=local") == {}


def test_a_student_waits_for_a_teacher_that_is_to_be_extended(tmp_path):
  file, root = tmp_path / "mine.py", tmp_path / "root"
  entries = {"base": entry(), "student": entry(config="digits:kd,resnet8", teacher="base")}
  file.write_text(f"def get_sweep():\n  return {entries!r}\n")
  teacher, student = read(str(file), root)
  teacher.run.path.mkdir(parents=True)
  (teacher.run.path / "result.json").write_text(result_of(teacher))
  longer = read(str(file), root, overrides=[("epochs", "9")])
  assert not Runner(longer, jobs=1).is_taught([longer[1]])
  assert Runner([student], jobs=1).is_taught([student])


# As submitit does: it calls `checkpoint` in a signal handler, which interrupts the job.
JOB = """
import signal
import sys
from okdph_jax.sweep.slurm import Train
def time_is_up(*_):
  job.process.send_signal(signal.SIGUSR2)  # Slurm signals all processes; the run goes on
  again = job.checkpoint()
  print(type(again).__name__, again.function.command == job.command, job.process.wait())
  sys.exit(0)
signal.signal(signal.SIGUSR2, time_is_up)
job = Train([sys.executable, *sys.argv[1:]])
job()
"""


@linux
def test_a_job_whose_time_is_up_goes_on_in_another(tmp_path):
  pytest.importorskip("submitit")
  for name, text in (("program.py", PROGRAM), ("job.py", JOB)):
    (tmp_path / name).write_text(text)
  run = tmp_path / "waits-seed42"
  run.mkdir()
  command = [sys.executable, tmp_path / "job.py", tmp_path / "program.py", f"--workdir={run}"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
    wait_for((run / "started").exists)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR2)
    try:
      assert job.communicate(timeout=60)[0].endswith("DelayedSubmission True 75\n")
    finally:
      job.kill()
  assert (run / "saved").exists()


def test_a_sweep_leaves_the_handlers_of_signals_as_they_were(capsys):
  before = [signal.getsignal(number) for number in signals.STOPPING]
  assert Runner([], jobs=1).run() == 0
  assert [signal.getsignal(number) for number in signals.STOPPING] == before
