import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from okdph_jax.cli import report
from okdph_jax.report import paper, tables
from okdph_jax.training import logbook

READERS = ("student_0", "student_1", "hybrid", "ensemble")


def made(seed=0, last=(0.3, 0.4, 0.35, 0.45), method="okdph", wrappers=(), **config):
  """The result of a run of two evaluations whose first is 0.1 better for the hybrid."""
  options = config.pop("options", {"students": 2, "omega": 0.8})
  data = {"name": "cifar10", "dir": f"/home/{seed}", "fraction": config.pop("fraction", 0.01)}
  validation = config.pop("validation", None)
  whole = {
    "seed": seed,
    "epochs": 300,
    "network": "resnet32",
    "views": ("hflip", "cutout", "augment"),
    "data": data,
    "method": {"name": method, **options},
    "wrappers": wrappers,
  } | config
  first = [last[0], last[1], last[2] + 0.1, last[3]]
  lines = []
  for step, row in ((600, first), (1200, last)):
    accuracy = {"test": dict(zip(READERS, row, strict=True))}
    if validation:
      accuracy["validation"] = dict(zip(READERS, validation, strict=True))
    lines.append({"step": step, "epoch": step // 4, "accuracy": accuracy, "seconds": step / 10})
  return logbook.result(
    lines,
    whole,
    singles=READERS[:3],
    students=options.get("students", 1),
    parameters=933812,
    version="0.1.0",
  )


def rows(markdown):
  """[{column: cell}, ...] of every table in it, in order."""
  found, header = [], None
  for line in markdown.splitlines():
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
    if not line.startswith("|"):
      header = None
    elif header is None:
      header = cells
    elif not set(line) <= set("|:-"):
      found.append(dict(zip(header, cells, strict=True)))
  return found


def test_mean_and_spread_over_seeds():
  runs = [made(seed, (0.3, last, 0.35, 0.45)) for seed, last in enumerate((0.40, 0.42, 0.44))]
  (row,) = rows(tables.render(runs, head=True))
  assert (row["method"], row["views"]) == ("okdph", "hflip, cutout, augment")
  assert row["n"] == "3"
  assert row["best single network: last"] == "42.00 ± 2.00"  # ddof = 1, not 1.63
  assert row["best single network: best"] == "45.00 ± 0.00"  # the hybrid's first evaluation
  assert row["any reader: best"] == "45.00 ± 0.00"
  assert row["paper"] == "44.14"
  assert (row["epochs"], row["evaluations"]) == ("300", "2")
  assert (row["minutes"], row["parameters"]) == ("2", "933,812")


def test_a_single_run_has_no_spread_and_readers_stand_apart():
  text = tables.render([made()])
  assert "### cifar10, 1 % of the training set, resnet32" in text
  assert "± 0" not in text
  single, ensemble = text.split("Ensembles:")
  found = {row["reader"]: row for row in rows(single) if "reader" in row}
  assert list(found) == ["student_0", "student_1", "hybrid"]
  assert (found["hybrid"]["last"], found["hybrid"]["best"]) == ("35.00", "45.00")
  assert (found["student_1"]["last"], found["student_1"]["best"]) == ("40.00", "40.00")
  (row,) = rows(ensemble)
  assert (row["reader"], row["last"], row["best"], row["n"]) == (
    "ensemble",
    *["45.00"] * 2,
    "1",
  )


def test_without_validation_there_is_no_column_for_it():
  assert "chosen on validation" not in tables.render([made()])
  row = rows(tables.render([made(validation=(0.9, 0.1, 0.2, 0.3))], head=True))[0]
  assert row["best single network: chosen on validation"] == "30.00"


def test_variants_are_told_apart_by_what_differs_within_the_method():
  runs = [
    made(options={"students": 2, "omega": 0.8, "hybrid_gradient": True}),
    made(options={"students": 2, "omega": 0.8, "hybrid_gradient": False}),
    made(method="base", options={"students": 3}),
    made(method="base", options={"students": 1}, wrappers=({"name": "sam", "rho": 0.05},)),
    made(method="dml", views=("hflip", "cutout")),
    made(method="dml", views=("crop(4)|flip",) * 2),
  ]
  methods = [row["method"] for row in rows(tables.render(runs, head=True))]
  assert methods == [
    "base",
    "base + sam",
    "dml, views=crop(4)\\|flip / crop(4)\\|flip",
    "dml, views=hflip / cutout",
    "okdph, hybrid_gradient=False",
    "okdph, hybrid_gradient=True",
  ]


def test_groups_are_never_mixed():
  runs = [
    made(),
    made(fraction=1.0),
    made(fraction=1.0, network="vgg16"),
    made(fraction=1.0, views=("hflip|noise(1)",) * 3),
  ]
  text = tables.render(runs, head=True)
  assert [line for line in text.splitlines() if line.startswith("#")] == [
    "### cifar10, 1 % of the training set, resnet32",
    "### cifar10, resnet32",
    "### cifar10, vgg16",
    "### cifar10, noisy inputs, resnet32",
  ]
  assert [row["paper"] for row in rows(text)] == ["44.14", "95.01", "95.32", "84.27"]
  assert rows(text)[-1]["views"] == r"hflip\|noise(1)"


def test_other_epochs_are_another_row():
  labels = [row["method"] for row in rows(tables.render([made(), made(epochs=30)], head=True))]
  assert labels == ["okdph, epochs=30", "okdph, epochs=300"]


def test_the_documents_hold_the_tables_of_the_committed_results():
  root = Path(__file__).parents[2]
  results, warnings = tables.find([root / "docs" / "results"])
  assert results and not warnings
  assert tables.render(results) in (root / "docs" / "results.md").read_text()
  table = [x for x in tables.render(results, head=True).splitlines() if x.startswith("|")]
  assert "\n".join(table) in (root / "README.md").read_text()


@pytest.mark.parametrize(
  ("cell", "value"),
  [
    (("cifar10", "clean", "resnet32", "dml", 2), 94.27),
    (("cifar100", "clean", "wrn20_8", "okdph", 2), 78.88),
    (("cifar100", "clean", "resnet32", "mean_teacher", 1), 71.29),
    (("cifar10", "clean", "vgg16", "okdph", 4), 95.78),
    (("cifar10", "1 %", "resnet32", "dml", 2), 38.66),
    (("cifar10", "10 %", "vgg16", "one", 2), 76.64),
    (("cifar100", "noisy", "densenet40_12", "okdph", 2), 48.62),
    (("cifar100", "1 %", "densenet40_12", "pcl", 2), 7.46),
    (("imagenet2012", "clean", "resnet18", "okdph", 2), 70.66),
    (("cifar10", "clean", "resnet32", "base", 3), None),
    (("cifar10", "clean", "resnet32", "dml", 4), None),
    (("cifar10", "1 %", "resnet32", "okdph", 3), None),
    (("digits", "clean", "resnet8", "okdph", 2), None),
  ],
)
def test_the_papers_numbers(cell, value):
  assert paper.number(*cell) == value


def test_spread():
  assert tables.spread([]) == ""
  assert tables.spread([0.5]) == "50.00"
  assert tables.spread([0.5, 0.6]) == f"55.00 ± {math.sqrt(50):.2f}"


def test_files_that_are_no_results_are_named_and_the_others_stand(tmp_path, capsys):
  (tmp_path / "a" / "run").mkdir(parents=True)
  logbook.write_result(tmp_path / "a" / "run", made(0))
  logbook.write_config(tmp_path / "a" / "run", {}, {})
  logbook.write_result(tmp_path / "a", made(1))
  (tmp_path / "again.json").write_text(json.dumps(made(1)))
  (tmp_path / "torn.json").write_text(json.dumps(made(2))[:-40])
  (tmp_path / "foreign.json").write_text('{"ratio": 1.1}')
  (tmp_path / "list.json").write_text("[1, 2]")
  for name, wrong in (("best", None), ("last", "0.4")):
    result = made(3)
    result["readers"]["hybrid"][name] = wrong
    (tmp_path / f"{name}.json").write_text(json.dumps(result))
  assert report.main([str(tmp_path), "--head"]) == 0
  out, err = capsys.readouterr()
  assert [row["n"] for row in rows(out)] == ["2"]
  assert sorted(line.split(":")[0].rsplit("/", 1)[1] for line in err.splitlines()) == [
    "again.json",
    "best.json",
    "foreign.json",
    "last.json",
    "list.json",
    "torn.json",
  ]


@pytest.mark.parametrize("arguments", [["DIR"], ["DIR/missing"], ["curves", "DIR"]])
def test_nothing_to_show_is_one_line_and_exit_code_2(tmp_path, capsys, arguments):
  arguments = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
  assert report.main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == "" and str(tmp_path) in err
  assert err.count("\n") == 1


def test_curves_draws_a_line_per_reader(tmp_path):
  lines = [
    {"epoch": e, "accuracy": {"test": {"hybrid": e / 10}, "validation": {"hybrid": e / 9}}}
    for e in range(1, 6)
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  out = tmp_path / "new" / "curves.png"
  assert report.main(["curves", str(tmp_path), f"--out={out}"]) == 0
  from PIL import Image

  assert Image.open(out).size == (1050, 630)


def test_it_runs_without_jax_and_tensorflow(tmp_path):
  (tmp_path / "result.json").write_text(json.dumps(made()))
  (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "accuracy": {"test": {"a": 0.5}}}\n')
  code = f"""
import sys
absent = {{"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "clu", "ml_collections"}}
for name in absent:
  sys.modules[name] = None
from okdph_jax.cli.report import main
assert main([{str(tmp_path)!r}]) == 0
assert main(["curves", {str(tmp_path)!r}, "--out={tmp_path}/curves.png"]) == 0
"""
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
