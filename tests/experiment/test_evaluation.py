"""Evaluation of trained networks: known answers, the run's own numbers, other data."""

import json

import numpy as np
import pytest

from okdph_jax import cli
from okdph_jax.cli.train import main
from okdph_jax.experiment.evaluation import calibration_error, evaluate, evaluate_all, measure
from tests import runs

OWN = "tests.nets:Small"


def test_measures_have_their_known_values():
  p = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
  found = measure(np.log(p) + 3, np.array([0, 1, 1, 0]), ("a", "b", "c"))
  assert found.accuracy == 0.75
  assert found.cross_entropy == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.5]).mean())
  assert found.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
  np.testing.assert_array_equal(found.per_class, [1, 0.5, np.nan])
  # The four confidences lie in bins of their own: gaps 0.3, 0.6, 0.2 and 0.5.
  assert found.calibration_error == pytest.approx((0.3 + 0.6 + 0.2 + 0.5) / 4)


def test_calibration_error_averages_within_a_bin():
  assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0, abs=1e-12)
  assert calibration_error(np.full(10, 0.7), np.arange(10) < 2) == pytest.approx(0.5)
  assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("evaluation")
  options = runs.options(runs.arrays(folder / "data.npz"))
  assert main(["--config=digits", *options, f"--workdir={folder / 'run'}"]) == 0
  return folder / "run"


def test_the_last_checkpoint_has_the_accuracy_that_the_run_has_logged(finished):
  line = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
  found = evaluate_all(finished, which="last", network=OWN)
  assert {name: e.accuracy for name, e in found.items()} == line["accuracy"]["test"]
  for name, e in found.items():
    assert e.cross_entropy == pytest.approx(line["cross_entropy"]["test"][name], rel=1e-5)
    assert e.confusion.sum() == 16 and e.checkpoint == "last, step 4"
  assert evaluate(finished, network=OWN).reader == "student_0"


def test_what_was_estimated_for_an_evaluation_is_what_is_loaded(tmp_path):
  """The networks of swa and reestimate, with the statistics that they were evaluated with."""
  run = tmp_path / "run"
  wrappers = "({'name':'swa','start':'1 epoch'},{'name':'reestimate'})"
  options = runs.options(runs.arrays(tmp_path / "data.npz"))
  assert (
    main(["--config=digits", *options, f"--config.wrappers={wrappers}", f"--workdir={run}"])
    == 0
  )
  line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
  found = evaluate_all(run, which="last", network=OWN)
  logged = line["cross_entropy"]["test"]
  assert logged.keys() == found.keys()
  assert {"swa_hybrid", "reestimated_hybrid"} <= logged.keys()
  for name, e in found.items():
    assert e.cross_entropy == pytest.approx(logged[name], rel=1e-5), name
  assert logged["reestimated_center"] != logged["center"]


def test_other_data_are_taken_where_they_fit(finished, tmp_path):
  other = runs.arrays(tmp_path / "other.npz", seed=1)
  e = evaluate(finished, "hybrid", data={"dir": str(other)}, split="train", network=OWN)
  assert e.confusion.sum() == 32 and e.dataset == "arrays, train: 32 images"
  for changed, says in ((dict(classes=4), "4 classes"), (dict(size=10), "images [10, 10, 1]")):
    path = runs.arrays(tmp_path / "wrong.npz", **changed)
    with pytest.raises(ValueError) as error:
      evaluate_all(finished, data={"dir": str(path)}, network=OWN)
    assert says in str(error.value) and "\n" not in str(error.value)
  record = finished / "config.json"
  whole = record.read_text()
  record.write_text(json.dumps(json.loads(whole) | {"class_names": ["cat", "dog", "fox"]}))
  evaluate_all(finished, network=OWN)  # those of arrays have no names
  np.savez(tmp_path / "named.npz", **np.load(other), class_names=["cat", "elk", "fox"])
  with pytest.raises(ValueError, match="class 1 is 'elk' in arrays and 'dog' in the run"):
    evaluate_all(finished, data={"dir": str(tmp_path / "named.npz")}, network=OWN)
  record.write_text(whole)
  for reader, more, says in (
    ("leader", {}, "no reader 'leader'"),
    (None, {"split": "validation"}, "no split 'validation'"),
    (None, {"which": "best-validation"}, "no validation split"),
  ):
    with pytest.raises(ValueError, match=says):
      evaluate(finished, reader, network=OWN, **more)


def test_the_command_writes_table_and_picture(finished, tmp_path, capsys):
  arguments = [f"--workdir={finished}", f"--network={OWN}", f"--out={tmp_path / 'out'}"]
  assert cli.dispatch(["evaluate", *arguments, "--reader=hybrid"]) == 0
  assert "true class" in capsys.readouterr().out
  names = {p.name for p in (tmp_path / "out").iterdir()}
  assert names == {"hybrid.json", "hybrid.csv", "hybrid.png"}
  written = json.loads((tmp_path / "out" / "hybrid.json").read_text())
  assert written["accuracy"] == evaluate(finished, "hybrid", network=OWN).accuracy
  table = (tmp_path / "out" / "hybrid.csv").read_text().splitlines()
  assert [list(map(int, row.split(",")[1:])) for row in table[1:]] == written["confusion"]
  for wrong, says in (
    ([*arguments, "--reader=leader"], "no reader 'leader'"),
    ([*arguments, "--data.nme=x"], "did you mean 'data.name'"),
    (["--workdir=/nowhere"], "/nowhere"),
    ([], "--workdir=DIR"),
  ):
    assert cli.dispatch(["evaluate", *wrong]) == 2
    said = capsys.readouterr().err.splitlines()
    assert says in said[-1], said
