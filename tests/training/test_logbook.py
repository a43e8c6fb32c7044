import json
import os
import sys

import numpy as np
import pytest

from okdph_jax.run import Run
from okdph_jax.saved_config import differing
from okdph_jax.training import logbook

SINGLES = ("student_0", "student_1", "hybrid")


def line(step, test, validation=None, **more):
  accuracy = {"test": dict(zip((*SINGLES, "ensemble"), test, strict=True))}
  if validation:
    accuracy["validation"] = dict(zip((*SINGLES, "ensemble"), validation, strict=True))
  return {"step": step, "epoch": step // 10, "accuracy": accuracy, "seconds": step / 4} | more


def evaluation(step, loss=0.5):
  return dict(
    step=np.int32(step),
    epoch=step // 10,
    learning_rate=np.float32(0.1),
    losses={"loss": np.float32(loss), "task": 0.25},
    accuracy={"test": {"student_0": np.float64(0.5)}},
    cross_entropy={"test": {"student_0": np.float64(0.25)}},
    seconds=1.5,
    images_per_second=100.0,
  )


def hide_clu(monkeypatch):
  """An import of it fails, also where an earlier test has imported it."""
  for name in ("clu", "clu.metric_writers"):
    monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def book(tmp_path, monkeypatch):
  hide_clu(monkeypatch)
  with logbook.Logbook(Run(tmp_path)) as book:
    yield book


CONFIG = {
  "seed": 3,
  "epochs": 4,
  "network": "resnet8",
  "data": {"name": "digits", "dir": None},
  "method": {"name": "okdph", "omega": 0.8},
  "wrappers": (),
}


def test_lines_come_back_as_they_were_written(tmp_path, book):
  written = [book.append(**evaluation(step)) for step in (10, 20)]
  assert Run(tmp_path).lines == written
  assert written[0]["learning_rate"] == float(np.float32(0.1))
  assert type(written[0]["step"]) is int and type(written[0]["epoch"]) is int


def test_what_is_not_a_number_is_null(tmp_path, book):
  book.append(**evaluation(10, loss=np.nan))
  assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
  assert Run(tmp_path).lines[0]["losses"] == {"loss": None, "task": 0.25}


@pytest.mark.parametrize("torn", [b'{"step": 30, "ep', b'{"step": 30, "epoch": 3'])
def test_a_torn_last_line_is_cut(tmp_path, book, torn):
  first = book.append(**evaluation(10))
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  path.write_bytes(whole + torn)
  assert Run(tmp_path).lines == [first]
  second = book.append(**evaluation(20))
  assert Run(tmp_path).lines == [first, second]
  path.write_bytes(whole + torn)
  Run(tmp_path).cut_after(10)
  assert path.read_bytes() == whole


def test_cut_after_removes_what_is_later_than_the_step(tmp_path, book):
  written = [book.append(**evaluation(step)) for step in (10, 20, 30)]
  Run(tmp_path).cut_after(25)
  assert Run(tmp_path).lines == written[:2]
  Run(tmp_path).cut_after(20)
  assert Run(tmp_path).lines == written[:2]
  assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl"]


def test_result_of_fabricated_lines(tmp_path):
  lines = [
    line(10, [0.1, 0.5, 0.3, 0.6]),
    line(20, [0.4, 0.5, 0.5, 0.9]),
    line(30, [0.4, 0.2, 0.1, 0.8]),
  ]
  found = logbook.result(
    lines, CONFIG, singles=SINGLES, students=2, parameters=7, version="0.1.0", flops=9
  )
  Run(tmp_path).write_result(found)
  found = Run(tmp_path).result

  test = np.array([[0.1, 0.5, 0.3, 0.6], [0.4, 0.5, 0.5, 0.9], [0.4, 0.2, 0.1, 0.8]])
  for i, reader in enumerate((*SINGLES, "ensemble")):
    assert found["readers"][reader] == {
      "single": reader != "ensemble",
      "last": test[-1, i],
      "best": test[:, i].max(),
      "best_epoch": 1 + test[:, i].argmax(),  # argmax too gives the first of equals
      "at_best_validation": None,
    }
  assert found["best_single"] == {
    "reader": "student_1",
    "accuracy": 0.5,
    "epoch": 1,
    "chosen_on": "test",
  }
  plain = {key: found[key] for key in ("method", "network", "dataset", "seed", "students")}
  assert plain == dict(method="okdph", network="resnet8", dataset="digits", seed=3, students=2)
  assert (found["epochs"], found["steps"], found["evaluations"]) == (4, 30, 3)
  assert (found["parameters"], found["seconds"], found["flops"]) == (7, 7.5, 9)
  assert differing(found["config"], CONFIG) == []


def test_validation_chooses_and_test_is_reported():
  lines = [
    line(10, [0.1, 0.2, 0.3, 0.9], [0.5, 0.7, 0.1, 0.2]),
    line(20, [0.4, 0.6, 0.8, 0.5], [0.5, 0.6, 0.6, 0.9]),
    line(30, [0.2, 0.5, 0.7, 0.6], [0.5, 0.7, 0.6, 0.9]),
  ]
  found = logbook.result(
    lines, CONFIG, singles=SINGLES, students=2, parameters=7, version="0.1.0"
  )
  chosen = {name: reader["at_best_validation"] for name, reader in found["readers"].items()}
  assert chosen == {"student_0": 0.1, "student_1": 0.2, "hybrid": 0.8, "ensemble": 0.5}
  assert found["readers"]["hybrid"]["best"] == 0.8
  assert found["best_single"] == {
    "reader": "student_1",
    "accuracy": 0.2,
    "epoch": 1,
    "chosen_on": "validation",
  }


def test_best_single_is_the_best_single_network_of_a_line():
  both = line(10, [0.1, 0.3, 0.3, 0.9], [0.4, 0.2, 0.1, 0.8])
  assert logbook.best_single(both, SINGLES) == (0.4, "student_0")
  assert logbook.best_single(line(10, [0.1, 0.3, 0.3, 0.9]), SINGLES) == (0.3, "student_1")


def test_without_clu_one_line_says_so(tmp_path, monkeypatch, capsys):
  hide_clu(monkeypatch)
  with logbook.Logbook(Run(tmp_path)) as book:
    book.append(**evaluation(10))
  assert capsys.readouterr().out.count("\n") == 1
  assert [f for f in os.listdir(tmp_path)] == ["metrics.jsonl"]


def test_events_hold_the_same_numbers(tmp_path):
  pytest.importorskip("clu.metric_writers")
  from tensorflow.python.summary.summary_iterator import summary_iterator

  with logbook.Logbook(Run(tmp_path)) as book:
    book.append(**evaluation(10))
  (events,) = tmp_path.glob("events.out.*")
  found = {
    value.tag: (event.step, float(np.frombuffer(value.tensor.tensor_content, "<f4")[0]))
    if value.tensor.tensor_content
    else (event.step, value.tensor.float_val[0])
    for event in summary_iterator(str(events))
    for value in event.summary.value
  }
  assert found["test_accuracy/student_0"] == (10, 0.5)
  assert found["test_cross_entropy/student_0"] == (10, 0.25)
  assert found["losses/task"] == (10, 0.25)


def test_lines_are_json(tmp_path, book):
  book.append(**evaluation(10))
  (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert list(json.loads(text)) == [
    "step",
    "epoch",
    "learning_rate",
    "losses",
    "accuracy",
    "cross_entropy",
    "seconds",
    "images_per_second",
  ]
