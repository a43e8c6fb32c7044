"""The front door: help, names of configs and runs, and nonsense for every option."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from okdph_jax import cli
from okdph_jax.cli.arguments import split_options
from okdph_jax.cli.train import main, parse
from okdph_jax.experiment.config import check, load_config, run_name
from okdph_jax.experiment.options import OPTIONS

ROOT = Path(__file__).parents[2]


def refused(arguments, capsys):
  """The one line that refuses."""
  assert main(arguments) == 2, arguments
  said = capsys.readouterr().err
  assert said.startswith("okdph_jax: ") and said.count("\n") == 1, said
  return said


# Help.


def test_the_product_on_one_screen(capsys):
  for arguments in ([], ["--help"], ["-h"]):
    assert cli.dispatch(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30 and all(len(line) <= 96 for line in lines)
    assert set(cli.COMMANDS) | {"75"} <= {line.split()[0] for line in lines if line}
  assert cli.dispatch(["trian"]) == 2
  assert "did you mean 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_helps(name, capsys):
  assert cli.dispatch([name, "--help"]) == 0
  assert f"okdph {name}" in capsys.readouterr().out


def test_help_has_every_option_with_its_value(capsys):
  assert main(["--help"]) == 0
  general = capsys.readouterr().out
  assert all(f"\n{option.name} " in general for option in OPTIONS)
  assert main(["--config=digits:dml", "--config.epochs=7", "--help"]) == 0
  lines = capsys.readouterr().out.splitlines()
  rows = {line.split()[0]: line.split()[1:] for line in lines if line}
  assert rows["epochs"][0] == "7" and rows["data.name"][0] == "digits"
  assert "method.students=2" in rows


def test_help_and_misspelt_options_need_no_jax():
  program = (
    "import sys; sys.modules['jax'] = None\n"
    "from okdph_jax import cli\n"
    "for name in cli.COMMANDS: assert cli.dispatch([name, '--help']) == 0\n"
    "for wrong in (['trian'], ['train', '--wrkdir=x'], "
    "['train', '--config=digits', '--config.epoch=1']):\n"
    "  assert cli.dispatch(wrong) == 2\n"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_print_config(capsys, tmp_path):
  arguments = ["--config=digits", "--print-config", f"--workdir={tmp_path / 'run'}"]
  assert main(arguments) == 0
  assert "network: resnet8" in capsys.readouterr().out
  assert not (tmp_path / "run").exists()


# Arguments.


def test_config_options_stand_anywhere_and_in_either_form():
  for arguments in (
    ["--config.epochs=3", "--workdir=x", "--config=digits"],
    ["--config.epochs", "3", "--workdir", "x", "--config", "digits"],
    ["--config.epochs=9", "--config=digits", "--workdir=x", "--config.epochs=3"],
  ):
    config, flags = parse(arguments)
    assert (config.epochs, config.data.name, flags.workdir) == (3, "digits", "x")
  words = ["--config.method.same_init", "--config.learning_rate", "-1.0", "--config=a"]
  options = [("method.same_init", "true"), ("learning_rate", "-1.0")]
  assert split_options(words) == ("a", options, [])


@pytest.mark.parametrize("name", ["evaluate", "export"])
@pytest.mark.parametrize("word", ["--data=new.npz", "--data"])
def test_other_data_are_named_by_an_option(name, word, capsys):
  assert cli.dispatch([name, "--workdir=runs/digits", word]) == 2
  assert f"{word}: name an option of the data" in capsys.readouterr().err


def test_configs_are_found_by_name_from_any_folder(tmp_path):
  """Also by the path that they have in a checkout; the user's own come first."""
  program = (
    "from okdph_jax.experiment.config import load_config\n"
    "print(load_config('cifar10:dml,vgg16').network, "
    "load_config('configs/digits.py').data.name, load_config('mine').epochs)"
  )
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "mine.py").write_text(
    "import ml_collections\n\n\ndef get_config():\n"
    "  return ml_collections.ConfigDict({'epochs': 7})\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.stdout.split() == ["vgg16", "digits", "7"], done.stderr


def test_a_config_of_ones_own_may_leave_options_out(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("mine.py").write_text(
    "import ml_collections\n\n\ndef get_config():\n"
    "  return ml_collections.ConfigDict({'epochs': 7, 'method': {'name': 'dml'}})\n"
  )
  config = load_config("mine.py", [("method.students", "3")])
  check(config)
  assert (config.epochs, config.method.students, config.batch_size) == (7, 3, 128)
  assert load_config("mine.py", [("method.name", "kdcl")]).method.target == "minlogit"
  for text, says in (
    ("def get_config(): return 3", "returns a int"),
    ("def get_config(): return {}['a']", "KeyError"),
    ("def get_config(: pass", "SyntaxError"),
    ("x = 1", "get_config"),
  ):
    Path("broken.py").write_text(text)
    with pytest.raises(ValueError, match=says) as error:
      load_config("broken.py")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "spec, overrides, equal",
  [
    ("cifar10", {"method.name": "dml"}, "cifar10:dml"),
    ("digits", {"method.name": "one", "method.students": "4"}, "digits:one,resnet8,4"),
    ("cifar100", {"method.students": "3"}, "cifar100:okdph,resnet32,3"),
  ],
)
def test_another_method_brings_its_options_and_views(spec, overrides, equal):
  assert load_config(spec, overrides.items()) == load_config(equal)


def test_views_of_ones_own_go_with_any_number_of_students():
  config = load_config("cifar10", [("method.students", "5"), ("views", "('hflip',)")])
  assert (config.method.students, config.views) == (5, ("hflip",))


# The default folder.


@pytest.mark.parametrize(
  "spec, overrides, name",
  [
    ("configs/cifar10.py", {}, "cifar10-okdph-resnet32-seed42"),
    ("cifar10:okdph,resnet32,2", {}, "cifar10-okdph-resnet32-seed42"),
    ("cifar10:okdph,resnet32,3", {"seed": "1"}, "cifar10-okdph-resnet32-students3-seed1"),
    ("cifar10", {"method.name": "dml"}, "cifar10-dml-resnet32-seed42"),
    ("limited:sam", {}, "limited-sam-resnet32-cifar10-0.01-seed42"),
    (
      "cifar10",
      {"method.omega": "0.5", "epochs": "60"},
      "cifar10-okdph-resnet32-seed42-epochs60-omega0.5",
    ),
    ("cifar10:dml", {"network": "vgg8"}, "cifar10-dml-vgg8-seed42"),
    ("cifar10", {"checkpoint_every_minutes": "1.0"}, "cifar10-okdph-resnet32-seed42"),
    ("cifar10", {"epochs": "300"}, "cifar10-okdph-resnet32-seed42"),
    ("cifar10", {"data.dir": "/data"}, "cifar10-okdph-resnet32-seed42"),
    (
      "cifar10",
      {"data.name": "folder", "data.dir": "/data/cats"},
      "cifar10-okdph-resnet32-seed42-dircats-namefolder",
    ),
  ],
)
def test_the_default_folder_names_the_run(spec, overrides, name):
  assert run_name(spec, overrides.items()) == name
  _, flags = parse([f"--config={spec}", *(f"--config.{k}={v}" for k, v in overrides.items())])
  assert flags.workdir == f"runs/{name}"


def test_long_differences_become_a_digest():
  changes = [("views", "('crop(1)','crop(1)','flip')")]
  first = run_name("digits", changes)
  assert first == run_name("configs/digits.py", changes) and len(first) < 50
  assert first != run_name("digits", [("views", "('crop(1)','flip','flip')")])


# Every option.


def bounds(option):
  return [float(end) for end in option.bounds[1:-1].split(",")]


def nonsense(option):
  """Texts that are no value of the option."""
  words = ("nan", "inf", "-inf", "1e400", "1" + "0" * 400)
  if option.kind in (int, float):
    low, high = bounds(option)
    yield from (*words, "-1e400", "ten", "(1,2)", "{}", "None", str(int(low) - 1))
    yield str(int(high) + 1) if option.kind is int else str(high * 2 + 1)
    yield from [str(low)] * (option.bounds[0] == "(") + [str(high)] * (option.bounds[-1] == ")")
    yield from ["1.5"] * (option.kind is int)
  elif option.kind is bool:
    yield from ("maybe", "2", *words)
  elif option.kind is tuple:
    yield from ("((1,),)", "(None,)", "(3,'')" if option.name != "milestones" else "(nan,)")
  elif isinstance(option.bounds, tuple):
    yield from ("", "maybe", "1", f"{option.bounds[0]}x")
  elif option.kind is dict:
    yield from ("{}", "3", "nan")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_refuses_nonsense(option, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for text in nonsense(option):
    said = refused(["--config=digits", f"--config.{option.name}={text}"], capsys)
    assert option.name.rpartition(".")[2] in said, said
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_takes_its_default_and_its_bounds(option):
  values = [] if option.default is None or option.kind is dict else [option.default]
  if isinstance(option.bounds, tuple):
    values += option.bounds
  elif option.bounds:
    low, high = map(option.kind, bounds(option))
    values += [low] * (option.bounds[0] == "[") + [high] * (option.bounds[-1] == "]")
  for value in values:
    spec = "digits:kd" if option.name == "generations" else "digits"
    whole = [("batch_size", str(value))] * (option.name in ("accumulate", "batch_norm_images"))
    check(load_config(spec, [*whole, (option.name, str(value))]))
