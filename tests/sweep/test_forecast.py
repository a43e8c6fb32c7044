"""`okdph sweep --dry-run`: the predicted cost of runs."""

import pytest

from okdph_jax.cli import dispatch
from okdph_jax.experiment.build import build
from okdph_jax.sweep import cells, forecast
from tests import runs

FILE = """
def get_sweep():
  common = {{
    "data.name": "arrays", "data.dir": {path!r}, "network": "tests.nets:Small",
    "batch_size": 16, "epochs": 2, "eval_every_epochs": 1, "views": ("crop(1)",),
  }}
  return {{
    "okdph": {{"config": "digits:okdph"}} | common,
    "base": {{"config": "digits:base", "method.students": 1}} | common,
    "kd": {{"config": "digits:kd", "teacher": "base"}} | common,
    "born": {{"config": "digits:kd", "generations": 3}} | common,
  }}
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(FILE.format(path=str(runs.arrays(tmp_path / "data.npz"))))
  return path


def test_the_time_is_that_of_all_steps_and_evaluations(file, tmp_path, monkeypatch):
  monkeypatch.setattr(forecast, "step_seconds", lambda *_: 2.0)
  found = cells.read(str(file), tmp_path)
  forecaster = forecast.Forecaster(found)
  flops = {}
  for cell in found[:2]:
    dataset = forecaster._dataset(cell.config)
    flops[cell.entry] = forecast.flops(build(cell.config, dataset), cell.config, dataset)
  (step, evaluation), (_, single) = flops["okdph"], flops["base"]
  assert evaluation == pytest.approx(4 * single, rel=0.1)  # the ensemble costs nothing more
  cost = forecaster.cost(found[0])
  assert cost.steps == 4
  assert cost.flops == pytest.approx(2 * (32 * step + 16 * evaluation))
  assert cost.seconds == pytest.approx(2.0 * cost.flops / (16 * step))


def test_the_table(file, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(forecast, "SECONDS", 0.0)
  asked = [str(file), f"--root={tmp_path}", "--only=entry=base", "--dry-run"]
  assert dispatch(["sweep", *asked]) == 0
  base, total = (line.split() for line in capsys.readouterr().out.splitlines()[2:4])
  assert base[:5] == ["base", "1", "of", "1", "4"] and base[-1] == "0:00:00"
  assert total[0] == "all" and total[1:] == base[1:]


def test_teachers_that_are_not_asked_for_and_generations(file, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(forecast, "SECONDS", 0.0)
  asked = [str(file), f"--root={tmp_path}", "--only=entry=kd,entry=born", "--dry-run"]
  assert dispatch(["sweep", *asked]) == 0
  kd, born = (line.split() for line in capsys.readouterr().out.splitlines()[2:4])
  assert kd[:5] == ["kd", "1", "of", "1", "4"] and born[:5] == ["born", "1", "of", "1", "12"]
  assert float(born[5]) == pytest.approx(3 * float(kd[5]), rel=0.01)  # FLOPs
