"""Training, from images of any source but a dataset's name, needs no TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.runs import arrays, evaluations

HIDDEN = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "clu", "tensorboard"):
  sys.modules[name] = None  # as if it were not installed
from okdph_jax.main import main
sys.exit(main(sys.argv[1:]))
"""
OPTIONS = (
  "--config=configs/digits.py",
  "--config.network=tests.nets:Small",
  "--config.epochs=2",
  "--config.eval_every_epochs=1",
)


def run(*options):
  command = [sys.executable, "-c", HIDDEN, *OPTIONS, *map(str, options)]
  return subprocess.run(command, capture_output=True, text=True)


def source(name, path):
  """The options that name a small dataset, made under `path`."""
  path.mkdir()
  if name == "arrays":
    return ["--config.data.name=arrays", f"--config.data.dir={arrays(path / 'set.npz')}"]
  if name == "folder":
    generator = np.random.default_rng(0)
    for i in range(24):
      file = path / ("test" if i % 4 == 3 else "train") / "abc"[i % 3] / f"{i}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(file)
    return ["--config.data.name=folder", f"--config.data.dir={path}"]
  return ["--config.data.fraction=0.1"]


@pytest.mark.parametrize("name", ["digits", "arrays", "folder"])
def test_a_run_without_tensorflow(name, tmp_path):
  done = run(*source(name, tmp_path / "data"), f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  assert [line["epoch"] for line in evaluations(tmp_path / "run")] == [1, 2]
  lines = [line for line in done.stdout.splitlines() if "TensorBoard" in line]
  assert len(lines) == 1 and "pip install" in lines[0]


def test_a_dataset_by_name_is_refused_in_one_line(tmp_path):
  done = run("--config.data.name=cifar10", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "pip install tensorflow" in line and "'digits', 'folder' or 'arrays'" in line
