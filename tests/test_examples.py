"""The scripts in examples/ run, on sizes that take seconds."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from okdph_jax import methods
from okdph_jax.cli.train import parse
from okdph_jax.models import torchvision
from okdph_jax.run import Run
from okdph_jax.views import spec
from tests import runs

ROOT = Path(__file__).parents[1]
SMALL = ('"resnet8"', '"tests.nets:Small"')


@pytest.fixture
def example(tmp_path, monkeypatch):
  """Runs an example in an empty folder, with these pieces of its text replaced."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)

  def run(name, *changes):
    text = (ROOT / "examples" / name).read_text()
    for old, new in changes:
      assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
      text = text.replace(old, new)
    (tmp_path / name).write_text(text)
    return runpy.run_path(str(tmp_path / name), run_name="__main__")

  return run


@pytest.fixture(autouse=True)
def compile_quickly():
  """Much is compiled here, and nothing runs for long."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def forget():
  """What an example registers, or is imported as, ends with its test."""
  before = dict(methods.METHODS), dict(spec.PIXEL_OPS)
  yield
  for table, entries in zip((methods.METHODS, spec.PIXEL_OPS), before, strict=True):
    table.clear()
    table.update(entries)
  for path in (ROOT / "examples").glob("*.py"):
    sys.modules.pop(path.stem, None)


def test_own_loop(example, capsys):
  example("own_loop.py", ("EPOCHS, BATCH, STUDENTS = 20", "EPOCHS, BATCH, STUDENTS = 4"), SMALL)
  accuracies = [float(line.split()[-9]) for line in capsys.readouterr().out.splitlines()]
  assert len(accuracies) == 3 and min(accuracies) > 0.5


def test_own_network(example):
  base = (
    'load_config("digits", [',
    'load_config("digits:base", [("views", "(\'crop(1)\',)"), ',
  )
  example("own_network.py", ("EPOCHS = 20", "EPOCHS = 1"), base)
  learner = Run("runs/SmallNnx").learner("last")
  assert learner.params["students"]["conv1"]["kernel"].shape == (1, 3, 3, 1, 32)
  assert Run("runs/SmallLinen").config["network"] == "own_network:SmallLinen"


def test_own_images(example, capsys):
  small = ('load_config("digits")', 'load_config("digits:base")')
  views = ('("crop(2)", "crop(2)|rotate(15)", "crop(2)|cutout(6)")', '("crop(2)",)')
  network = ("config.epochs = EPOCHS", 'config.epochs, config.network = 1, "tests.nets:Small"')
  load = ('load("runs/pictures")', 'load("runs/pictures", network="tests.nets:Small")')
  example("own_images.py", small, views, network, load)
  said = capsys.readouterr().out
  assert "100 validation" in said and "pictures/test/digit_0/" in said


def test_own_method(example):
  example(
    "own_method.py", ("EPOCHS = 20", "EPOCHS = 2"), ("dml,resnet8", "dml,tests.nets:Small")
  )
  run = Run("runs/careful_dml")
  assert run.config["method"] == {"name": "careful_dml", "students": 2, "weight": 0.5}
  assert "ema_student_1" in run.result["readers"]
  assert 0 < run.lines[-1]["losses"]["distill"] < run.lines[-1]["losses"]["task"]
  del methods.METHODS["careful_dml"]
  with pytest.raises(ValueError, match="import the module that registers it"):
    run.network(network="tests.nets:Small")


def test_own_view(example):
  module = example(
    "own_view.py", ("EPOCHS = 20", "EPOCHS = 1"), ("okdph,resnet8", "okdph,tests.nets:Small")
  )
  assert Image.open("views.png").size > (100, 100)
  image = np.full((4, 4, 1), 250, np.uint8)
  seen = [module["brightness"](60)(jax.random.key(k), image) for k in range(8)]
  assert len({int(x[0, 0, 0]) for x in seen}) > 3 and all((x == x[0, 0]).all() for x in seen)
  assert Run("runs/own_view").result


def test_table1_row(example, capsys):
  path = runs.arrays(Path("data.npz").absolute())
  small = (*runs.options(path), "--config.views=('crop(1)',)")
  options = [text.removeprefix("--config.").split("=", 1) for text in small]
  example(
    "table1_row.py",
    ("SEEDS = (42, 43, 44, 45, 46)", "SEEDS = (42, 43)"),
    ("OPTIONS = []", f"OPTIONS = {options}"),
  )
  assert "±" in capsys.readouterr().out  # over two seeds


def test_pod(tmp_path):
  """The script starts each process as it must; test_distributed trains with such processes."""
  program = tmp_path / "okdph"
  program.write_text(
    '#!/bin/sh\necho "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES" "$@" > $JAX_PROCESS_ID\n'
  )
  program.chmod(0o755)
  environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  script = ["bash", str(ROOT / "examples" / "pod.sh")]
  assert not subprocess.run(script, cwd=tmp_path, env=environment).returncode
  first, second = ((tmp_path / name).read_text() for name in "01")
  assert first == second and first.startswith("localhost:12345 2 train ")
  parse(first.split()[3:])


def test_pretrained_teacher(example, tmp_path, capsys):
  """A ResNet18 of random weights, under torchvision's names."""
  save_file = pytest.importorskip("safetensors.numpy").save_file
  leaves = jax.tree_util.tree_leaves_with_path(
    dict(torchvision._shapes(torchvision.NETWORKS["resnet18"](3)))
  )
  random = np.random.default_rng(0)
  save_file(
    {
      torchvision._name(path): random.uniform(
        0.1, 0.2, leaf.shape[::-1] if leaf.ndim < 4 else [leaf.shape[i] for i in (3, 2, 0, 1)]
      ).astype(np.float32)
      for path, leaf in leaves
    },
    tmp_path / "teacher.safetensors",
  )
  for i in range(32):
    folder = tmp_path / "pictures" / ("test" if i % 4 == 3 else "train") / "abc"[i % 3]
    folder.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
  example(
    "pretrained_teacher.py",
    ('("digits:kd,resnet8")', '("digits:kd,tests.nets:Small")'),
    ("EPOCHS, IMAGE_SIZE = 20, 64", "EPOCHS, IMAGE_SIZE = 2, 16"),
    ("crop(8), rotate(15), cutout(20)", "plain"),
  )
  said = capsys.readouterr().out
  assert "the resnet18 in teacher.safetensors, 3 classes" in said
  assert Run("runs/taught").network(network="tests.nets:Small").class_names == ("a", "b", "c")
