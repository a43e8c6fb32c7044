"""Two processes with a device each do what one process does with two devices."""

import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from okdph_jax import data
from okdph_jax.cli.train import at_run_time, main
from okdph_jax.data import stream
from okdph_jax.experiment.config import load_config
from okdph_jax.experiment.fit import check_devices
from okdph_jax.runtime import distributed, host
from tests.runs import arrays, evaluations, options

STEPS = 4  # an epoch of 8, 8 and 5 images, and one more batch


@pytest.fixture(autouse=True)
def one_compilation(tmp_path, monkeypatch):
  """For all the processes of a test."""
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def together(*command):
  """Starts the two processes of a pod."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  settings = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  return [
    subprocess.Popen(
      [sys.executable, *command],
      env=os.environ | settings | {"JAX_PROCESS_ID": str(i), "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]


def ended(processes):
  """([exit codes], [stdout], [stderr])"""
  said = [process.communicate(timeout=600) for process in processes]
  return [p.returncode for p in processes], *map(list, zip(*said, strict=True))


def test_a_pod_trains_the_run_of_one_process_stops_together_and_survives_none(tmp_path):
  path = arrays(tmp_path / "arrays.npz")
  run = ("-m", "okdph_jax.main", "--config=configs/digits.py:dml", *options(path))
  run += ("--config.epochs=40", "--config.eval_every_epochs=2")
  run += ("--config.views=('crop(1)','crop(1)')",)
  straight = (*run, "--config.devices=2", f"--workdir={tmp_path}/1")
  assert not subprocess.run([sys.executable, *straight]).returncode

  command = (*run, "--config.devices=1", "--pod", f"--workdir={tmp_path}/2")
  metrics = tmp_path / "2" / "metrics.jsonl"

  def lines():
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0

  def after_two_evaluations():
    processes, wanted = together(*command), lines() + 2
    deadline = time.monotonic() + 600
    while lines() < wanted:
      assert not any(p.poll() for p in processes) and time.monotonic() < deadline
      time.sleep(0.005)
    return processes

  processes = after_two_evaluations()
  processes[1].send_signal(signal.SIGTERM)
  codes, out, err = ended(processes)
  assert codes == [75, 75] and out[0].count("the same command resumes the run") == 1, err
  assert not (tmp_path / "2" / "result.json").exists()

  processes = after_two_evaluations()
  processes[1].kill()
  codes, out, err = ended(processes)
  assert codes == [1, -signal.SIGKILL] and "the pod lost a process" in err[0], err
  assert "Traceback" not in err[0]

  codes, out, err = ended(together(*command, "--config.views_on=host"))
  assert codes == [0, 0], err
  assert "resuming from step" in out[0] and not out[1].replace("[Gloo]", "").count("step")
  assert evaluations(tmp_path / "2") == evaluations(tmp_path / "1")
  assert (tmp_path / "2" / "result.json").exists()


@pytest.fixture
def pictures(tmp_path):
  """21 PNGs to stream."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 21), ("test", 3)):
    for i in range(count):
      path = tmp_path / split / "ab"[i % 2] / f"{i:02d}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).save(path)
  for i in (3, 4, 5, 16):
    (tmp_path / "train" / "ab"[i % 2] / f"{i:02d}.png").write_bytes(b"no image")
  return tmp_path


def seen(root):
  """What a process meets: batches, evaluation's batches, and how many images it decodes."""
  decoded, decode = [], stream.decode
  stream.decode = lambda *args: decoded.append(args[0]) or decode(*args)
  options = dict(name="folder", dir=str(root), train="train", test="test", fraction=1.0)
  options |= dict(replacement=False, validation=0, image_size=8, memory_limit=1, corrupt="skip")
  dataset = data.load(ml_collections.ConfigDict({"data": options}))
  decoded.clear()  # normalisation is measured by all
  mesh = host.mesh()
  whole = jax.jit(
    lambda tree: tree, out_shardings=jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )
  batch = dataset.train.batches(seed=0, batch_size=8, views=2, mesh=mesh)
  batches = [whole(batch(step)) for step in range(STEPS)]
  batches += [whole(batch) for batch in dataset.test.padded(4, mesh=mesh)]
  memory = data.Split(np.arange(21 * 4, dtype=np.uint8).reshape(21, 2, 2, 1), np.arange(21))
  batch = memory.batches(seed=0, batch_size=8, mesh=mesh)
  batches += [whole(batch(step)) for step in range(STEPS)]
  return [np.asarray(leaf) for leaf in jax.tree.leaves(batches)], len(decoded)


def member(root):
  """One process of a pod: what it has `seen`, and what it is told."""
  distributed.join()
  host.configure(1)
  me = jax.process_index()
  leaves, decoded = seen(root)
  with distributed.leader_first():
    with open(root / "order", "a") as file:
      file.write(str(me))
  np.savez(
    root / f"{me}.npz",
    *leaves,
    decoded=decoded,
    told=distributed.broadcast_from_leader(7 + me),
    anywhere=[distributed.any_process(False), distributed.any_process(me == 1)],
  )
  with distributed.only_leader_prints():
    print(f"process {me}")


def test_each_process_decodes_its_part_of_the_same_batches(pictures):
  codes, out, err = ended(together("-m", "tests.runtime.test_distributed", str(pictures)))
  assert codes == [0, 0], err
  assert "process 0" in out[0] and "process 1" not in out[1]
  said = out[0] + err[1]  # who decodes an image that is none says so
  assert all(f"{i:02d}.png is not" in said for i in (3, 4, 5, 16))
  assert "process 1: skipped (1 so far)" in err[1]
  assert (pictures / "order").read_text() == "01"
  leaves, decoded = seen(pictures)  # two devices, see conftest
  counts = []
  for i in range(2):
    there = np.load(pictures / f"{i}.npz")
    for number, leaf in enumerate(leaves):
      np.testing.assert_array_equal(there[f"arr_{number}"], leaf)
    assert there["told"] == 7 and there["anywhere"].tolist() == [False, True]
    counts.append(int(there["decoded"]))
  # Batches of 8 and the padded one are split, 5 images are everywhere.
  assert max(counts) < decoded <= sum(counts)


def test_a_batch_that_the_devices_of_a_pod_do_not_divide_is_refused(monkeypatch, capsys):
  config = load_config("digits")
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(host, "mesh", lambda devices: types.SimpleNamespace(size=48))
  with pytest.raises(ValueError, match="48 devices do not divide 64 images") as error:
    check_devices(config, 1442)
  assert "multiple of 48" in str(error.value) and "\n" not in str(error.value)
  monkeypatch.setattr(host, "mesh", lambda devices: types.SimpleNamespace(size=64))
  check_devices(config, 1442)
  assert "last batch of an epoch has 34 images" in capsys.readouterr().out
  check_devices(config, 128)
  assert not capsys.readouterr().out
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  check_devices(config, 1442)  # a CPU: its devices were chosen


def test_a_pod_of_nobody_is_refused_in_one_line(tmp_path):
  command = [sys.executable, "-m", "okdph_jax.main", "--config=configs/digits.py", "--pod"]
  done = subprocess.run([*command, f"--workdir={tmp_path}/run"], capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "--pod finds no other processes" in done.stderr and "srun" in done.stderr


def test_what_breaks_at_run_time_is_told_where_it_is_known(monkeypatch, capsys, tmp_path):
  def greedy(config, workdir, **_):
    jax.numpy.zeros(1 << 44).block_until_ready()

  monkeypatch.setattr("okdph_jax.experiment.fit.fit", greedy)
  assert main(["--config=configs/digits.py", f"--workdir={tmp_path}"]) == 1
  said = capsys.readouterr().err
  assert "a device ran out of memory" in said and "batch_size" in said and said.count("\n") == 1
  assert "lost a process" in at_run_time(jax.errors.JaxRuntimeError("Gloo"), True)
  assert at_run_time(jax.errors.JaxRuntimeError("a mistake"), False) is None
  assert at_run_time(RuntimeError("a mistake"), True) is None


if __name__ == "__main__":
  member(Path(sys.argv[1]))
