"""Statistics, gaps, and the tables as LaTeX and CSV, of made-up runs."""

import csv
import dataclasses
import io
import itertools
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from okdph_jax.cli import report
from okdph_jax.experiment import fit, paper
from okdph_jax.experiment.config import defaults, load_config
from okdph_jax.methods import METHODS
from okdph_jax.report import charts, readers, runs, statistics, tables
from tests.report.made import folder, trial

MEAN = ("okdph", "mean of students")
OURS, THEIRS = (0.50, 0.52, 0.51, 0.55), (0.45, 0.46, 0.47, 0.50)


def two_methods(ours=OURS, theirs=THEIRS, **more):
  rows = [("okdph", ours), ("base", theirs)]
  return [trial(m, seed, last=x, **more) for m, row in rows for seed, x in enumerate(row)]


def test_a_paired_difference_is_that_of_a_paired_t_test():
  trials = two_methods()
  found = statistics.difference(trials[:4], trials[4:], "last")
  wanted = stats.ttest_rel(OURS, THEIRS).confidence_interval(0.95)
  np.testing.assert_allclose((found.low, found.high), wanted)
  assert found.n == 4 and found.mean == pytest.approx(np.mean(OURS) - np.mean(THEIRS))
  assert found.clear


def test_pairs_are_those_of_equal_seeds_whatever_the_order():
  shuffled = [trial("base", seed, last=THEIRS[seed]) for seed in (3, 0, 7, 2) if seed < 4]
  found = statistics.difference(two_methods()[:4], shuffled, "last")
  assert found.n == 3  # seed 1 is not there
  assert found.mean == pytest.approx(np.mean([OURS[s] - THEIRS[s] for s in (0, 2, 3)]))


def test_one_pair_has_no_interval_and_none_no_difference():
  one = statistics.difference([trial("okdph", 0)], [trial("base", 0), trial("base", 1)], "last")
  assert (one.n, one.low, one.high, one.clear) == (1, None, None, False)
  assert statistics.difference([trial("okdph", 0)], [trial("base", 1)], "last") is None
  assert statistics.difference([trial("okdph", 0)], [trial("base", 0)], "chosen") is None


def test_draws_of_the_data_pair_runs_and_their_seeds_are_averaged():
  ours = [trial("okdph", seed, last=x, draw=d) for d, seed, x in ((0, 1, 0.5), (1, 2, 0.7))]
  theirs = [
    trial("base", seed, last=x, draw=d)
    for d, seed, x in ((0, 5, 0.3), (0, 6, 0.5), (1, 7, 0.5))
  ]
  found = statistics.difference(ours, theirs, "last")
  assert found.n == 2 and found.mean == pytest.approx((0.1 + 0.2) / 2)


def test_the_best_is_bold_only_where_every_interval_says_so():
  clear = tables.render(tables.sections(two_methods()))
  assert "**51.33" not in clear
  assert clear.count("**51.50 ± 2.16**") == 1 and clear.count("**52.00 ± 2.16**") == 2
  noisy = two_methods(theirs=(0.40, 0.53, 0.40, 0.56))
  assert "** " not in tables.render(tables.sections(noisy)).split("###")[1]
  third = [trial("dml", 0, last=0.2)]  # one run: nothing is known about it
  assert statistics.clear_best([("a", two_methods()[:4]), ("b", third)], "last") is None


def test_differences_to_a_baseline_that_is_named_by_method_or_label():
  trials = two_methods()
  (section,) = tables.sections(trials, "base")
  (table,) = [t for t in section.tables if t.caption.startswith("Difference to base")]
  assert [cell.text for cell in table.rows[0]] == [
    *("okdph", "4", *["+5.00 [+3.70, +6.30]"] * 3)
  ]
  with pytest.raises(ValueError, match="--baseline=bas: no such row.*base; okdph"):
    tables.sections(trials, "bas")
  several = [*trials, trial("okdph", 0, omega=0.5)]
  with pytest.raises(ValueError, match="okdph, omega=0.5; okdph, omega=0.8"):
    tables.sections(several, "okdph")
  (section,) = tables.sections(several, "okdph, omega=0.5")
  assert section.baseline == "okdph, omega=0.5"


def test_the_mean_of_students_selects_nothing_on_test():
  run = trial("okdph", 0)
  accuracies = {"student_0": 0.4, "student_1": 0.5, "leader": 0.6}
  others = dict.fromkeys(("hybrid", "ema_student_0", "swa_leader", "mean_0", "ensemble"), 0.9)
  readers = {
    name: {"single": name != "ensemble", "last": last, "best": 0.95, "at_best_validation": None}
    for name, last in (accuracies | others).items()
  }
  run = dataclasses.replace(run, result=run.result | {"readers": readers})
  assert statistics.accuracy(run, "students") == pytest.approx(0.5)
  unnamed = dataclasses.replace(
    run, result=run.result | {"readers": {"net": readers["hybrid"]}}
  )
  assert statistics.accuracy(unnamed, "students") is None
  (table, *_) = tables.sections([unnamed])[0].tables
  assert not any("students" in column for column in table.columns[3:])  # an empty column


def test_rows_of_the_release_are_named_so():
  release = paper.RELEASE["okdph"]
  trials = [trial("okdph", 0, **options) for options in ({}, release, release | {"omega": 0.5})]
  trials += [trial("okdph", 0, **release | {"fuse_with": "updated"})]
  trials += [trial("okddip", 0, **paper.RELEASE["okddip"])]  # its defaults
  ((_, rows),) = runs.grouped(trials)
  assert [label for label, _ in rows][-2:] == [
    "okdph (release), omega=0.5",
    "okdph (release), omega=0.8",
  ]
  assert [label.partition(", ")[0] for label, _ in rows] == [
    "okddip",
    *["okdph"] * 2,
    *["okdph (release)"] * 2,
  ]
  different = [
    name
    for name in METHODS
    if any(
      value != defaults(METHODS[name])[option]
      for option, value in paper.RELEASE.get(name, {}).items()
      if option != "students"
    )
  ]
  assert sorted(different) == sorted(paper.RELEASED_OTHERWISE)


@pytest.mark.parametrize("recorded_in", ["config.json", "result.json"])
def test_datasets_of_one_name_with_other_test_sets_are_never_compared(tmp_path, recorded_in):
  for name, seed, digest in (
    ("cats", 1, "a" * 32),
    ("dogs", 2, "b" * 32),
    ("other dogs", 1, "b" * 32),  # the seed of the cats
    ("copy of cats", 1, "a" * 32),
  ):
    run = folder(tmp_path / name, "base", seed)
    record = json.loads((run.path / recorded_in).read_text())
    record["fingerprint"] = {"test": {"images": 9, "digest": digest}}
    (run.path / recorded_in).write_text(json.dumps(record))
  shutil.copy(tmp_path / "dogs" / "result.json", tmp_path / "copy.json")
  trials, warnings = runs.find([tmp_path])
  assert len(warnings) == 2 and all("copy" in w or "cats" in w for w in warnings)
  groups = [(group.dataset, len(rows[0][1])) for group, rows in runs.grouped(trials)]
  assert groups == [("digits aaaaaa", 1), ("digits bbbbbb", 2)]


def test_the_kinds_of_readers():
  for kind, names in {
    readers.NETWORK: ("student_0", "leader", "reestimated_student_0"),
    readers.AVERAGE: ("hybrid", "swa_student_0", "reestimated_hybrid", "teacher"),
    readers.SEVERAL: ("ensemble", "swa_ensemble", "gated"),
  }.items():
    assert {readers.kind(name) for name in names} == {kind}


def test_gaps_of_the_grid_and_runs_that_are_not_finished(tmp_path, capsys):
  for method, seed in (("okdph", 0), ("okdph", 1), ("base", 0)):
    folder(tmp_path / f"{method}-{seed}", method, seed)
  folder(tmp_path / "vgg", "base", 0, network="vgg16")
  folder(tmp_path / "going", "base", 2, finished=False, done=3)
  assert report.main([str(tmp_path)]) == 0
  said = capsys.readouterr().out
  assert "| going | interrupted | 3 of 10 (30%) | 32.50 (student_0) |" in " ".join(said.split())
  gaps = said.split("Missing from the grid:")[1].strip().splitlines()
  assert gaps == [
    "- digits, resnet8: base: seed 1",
    "- digits, resnet8: okdph: seed 2",
    "- digits, vgg16: no run of okdph",
  ]


def test_runs_behind_links_are_found_once(tmp_path):
  folder(tmp_path / "real" / "run", "base", 0)
  (tmp_path / "linked").mkdir()
  (tmp_path / "linked" / "run").symlink_to(tmp_path / "real" / "run")
  (tmp_path / "linked" / "circle").symlink_to(tmp_path / "linked")
  (found,), warnings = runs.find([tmp_path / "linked"])
  assert found.name == "run" and found.result and not warnings


def test_latex_is_a_booktabs_table_with_its_signs_escaped():
  trials = [*two_methods(), *two_methods(network="vgg16")]
  text = tables.latex(tables.sections(trials, "base"))
  assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 1 + 2 * 4
  assert r"\textbf{52.00 $\pm$ 2.16}" in text
  assert "**" not in text and r"\textbf{Bold}: the interval" in text
  assert tables.escaped("a_b & 5% {x} ± -0.3 | 1-2") == (
    r"a\_b \& 5\% \{x\} $\pm$ $-$0.3 \textbar{} 1-2"
  )
  for line in text.splitlines():
    if line.endswith(r"\\"):  # cells as many as columns
      assert "_" not in line.replace(r"\_", "")


def test_csv_has_numbers_for_programs():
  trials = [*two_methods(), trial("dml", 0, last=0.3)]
  lines = list(csv.DictReader(io.StringIO(tables.csv(tables.sections(trials, "base")))))
  (okdph,) = [
    line
    for line in lines
    if (line["method"], line["reader"], line["measure"])
    == ("okdph", "best single network", "last")
  ]
  (mean,) = [line for line in lines if (line["method"], line["reader"]) == MEAN]
  assert (mean["measure"], mean["paper"], mean["pairs"]) == ("last", "", "4")
  assert float(mean["mean"]) == pytest.approx(51.5)
  assert float(mean["difference_low"]) == pytest.approx(3.70, abs=0.01)
  assert float(okdph["mean"]) == pytest.approx(52) and okdph["n"] == okdph["pairs"] == "4"
  assert float(okdph["sd"]) == pytest.approx(100 * np.std(OURS, ddof=1), abs=1e-3)
  assert float(okdph["difference_low"]) == pytest.approx(3.70, abs=0.01)
  (dml,) = [x for x in lines if x["method"] == "dml" and x["reader"] == "student_0"][:1]
  assert (dml["sd"], dml["low"], dml["difference"]) == ("", "", "")


def test_a_torn_config_is_named_and_the_others_stand(tmp_path):
  folder(tmp_path / "good", "base", 0)
  (tmp_path / "torn").mkdir()
  (tmp_path / "torn" / "config.json").write_text(json.dumps({"config": {}})[:-3])
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign" / "config.json").write_text('{"model": "bert"}')
  (folder(tmp_path / "damaged", "dml", 0).path / "metrics.jsonl").write_text("{\n{}\n")
  (folder(tmp_path / "torn_log", "dml", 1, training=2).path / "training.jsonl").write_text(
    "x\n"
  )
  (folder(tmp_path / "result", "base", 1).path / "config.json").write_text("{")
  (tmp_path / "early").mkdir()
  (tmp_path / "early" / "error.txt").write_text("there is no such dataset\n")
  found, warnings = runs.find([tmp_path])
  assert [(trial.name, trial.run is None) for trial in found] == [
    ("good", False),
    ("result", True),
  ]
  assert len(warnings) == 6 and "early: failed before training, there is no such" in warnings[0]
  assert sum("its result alone is shown" in warning for warning in warnings) == 1
  assert report.main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0


def test_a_finished_run_goes_before_an_unfinished_one(tmp_path):
  folder(tmp_path / "a", "base", 0, finished=False, done=4)
  folder(tmp_path / "b", "base", 0)
  (found,), (warning,) = runs.find([tmp_path])
  assert found.name == "b" and warning.startswith(f"{tmp_path / 'a' / 'config.json'}: left out")


def test_runs_may_have_the_names_of_what_runs_contain(tmp_path):
  for seed, name in enumerate(("best", "latest", "snapshots", "checkpoints")):
    (folder(tmp_path / name, "base", seed).path / "best").mkdir()
    (tmp_path / name / "best" / "result.json").write_text("{")
  found, warnings = runs.find([tmp_path])
  assert [trial.seed for trial in found] == [0, 3, 1, 2] and not warnings


def test_extended_runs_are_another_experiment_without_the_paper_s_number(tmp_path):
  for seed in (0, 1):
    run = folder(tmp_path / str(seed), "base", seed)
    if seed:
      result = json.loads((run.path / "result.json").read_text())
      (run.path / "result.json").write_text(json.dumps(result | {"extended_from_epochs": 6}))
  trials, _ = runs.find([tmp_path])
  ((_, rows),) = runs.grouped(trials)
  assert [label for label, _ in rows] == [
    "base, extended_from_epochs=6",
    "base, extended_from_epochs=None",
  ]
  assert [trial.milestones for trial in trials] == [[5.0, 8.0], [3.0, 4.0]]


def test_a_teacher_of_the_run_s_own_seed_is_no_difference():
  def rows(*runs_of):
    taught = [trial("kd", seed, draw=draw) for seed, draw, _ in runs_of]
    for one, (_, _, named) in zip(taught, runs_of, strict=True):
      one.config["teacher"] = f"../base-seed{named}:student_0@last"
    ((_, found),) = runs.grouped(taught)
    return [len(trials) for _, trials in found]

  taught = trial("kd", 1)
  taught.config["teacher"] = "../other"
  ((_, found),) = runs.grouped([taught, trial("base", 1)])
  assert [label for label, _ in found] == ["base", "kd"]
  assert rows((42, 1, 42), (43, 1, 43), (44, 7, 7)) == [3]  # by the seed or the draw
  assert rows((42, 1, 42), (43, 1, 42), (44, 1, 42)) == [3]  # one for all
  assert rows((42, 1, 42), (43, 1, 41)) == [1, 1]


def test_generations_are_paired_by_the_seed_that_was_asked_for():
  born = [trial("kd", 10 + seed, last=0.6 + 0.1 * seed) for seed in (1, 2)]
  for seed, one in enumerate(born, 1):
    one.result["replicate_seed"] = seed
  plain = [trial("base", seed, last=0.5 + 0.1 * seed) for seed in (2, 1)]
  found = statistics.difference(born, plain, "last")
  assert found.n == 2 and found.mean == pytest.approx(0.1) and found.half < 1e-9


def test_the_first_generation_is_a_run_of_base(tmp_path):
  """Also that of earlier versions, whose config had the options `name` and `students` alone."""
  config = load_config("digits:kd", [("generations", "2"), ("epochs", "3")])
  (first, _), _ = fit.generations(config, tmp_path)
  base = load_config("digits:base", [("epochs", "3"), ("method.students", "1")])
  assert first.method.to_dict() == base.method.to_dict()
  older = first.to_dict() | {"method": {"name": "base", "students": 1}}
  assert runs.variant(older) == runs.variant(first.to_dict())


def test_two_files_have_the_names_of_their_folders(tmp_path):
  files = [folder(tmp_path / f"run-{seed}", "base", seed).path for seed in (0, 1)]
  found, _ = runs.find([file / "result.json" for file in files])
  assert [trial.name for trial in found] == ["run-0", "run-1"]


def test_lists_are_not_torn_in_the_lines_of_a_chart():
  drops = {True: [150, 225], False: [100, 200]}
  rows = []
  for early, rate in itertools.product(drops, (0.1, 0.05)):
    one = trial("base", 0)
    options = {"milestones": drops[early], "learning_rate": rate}
    rows.append(dataclasses.replace(one, config=one.config | options))
  ((_, found),) = runs.grouped(rows)
  lines = dict(charts.varied(found))["learning_rate"]
  assert {name for name, _ in lines} == {f"base, milestones={drop}" for drop in drops.values()}
