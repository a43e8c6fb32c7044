import csv
import io
import json
import math
import re
import subprocess
import sys

import pytest

from okdph_jax.cli import report
from okdph_jax.experiment import paper as settings
from okdph_jax.experiment.config import defaults
from okdph_jax.intervals import Interval
from okdph_jax.methods import METHODS
from okdph_jax.report import paper, plots, statistics, tables
from okdph_jax.report.runs import Trial
from okdph_jax.run import Run
from okdph_jax.saved_config import completed
from okdph_jax.training import logbook
from tests.report.made import folder

# With omega = 1, Table 7's cell of CIFAR-10, 1 %, ResNet32.
TUNED = {"beta": 0.5, "gamma": 0.5, "fuse_every": "5 steps"} | settings.RELEASE["okdph"]
READERS = ("student_0", "student_1", "hybrid", "ensemble")


def made(seed=0, last=(0.3, 0.4, 0.35, 0.45), method="okdph", wrappers=(), **config):
  """A run of two evaluations whose first is 0.1 better for the hybrid."""
  options = config.pop("options", {"students": 2, "omega": 1.0} | TUNED)
  data = {"name": "cifar10", "dir": f"/home/{seed}", "fraction": config.pop("fraction", 0.01)}
  data |= {"train": "train", "validation": 0, "replacement": data["fraction"] != 1, "seed": 42}
  validation = config.pop("validation", None)
  whole = {
    "seed": seed,
    **settings.CIFAR_TRAINING,
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
  result = logbook.result(
    lines,
    whole,
    singles=READERS[:3],
    students=options.get("students", 1),
    parameters=933812,
    version="0.1.0",
  )
  return Trial(f"{method}-{seed}", completed(whole), result, None)


def rendered(trials, baseline=None):
  return tables.render(tables.sections(trials, baseline))


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
  row = rows(rendered(runs))[0]
  assert (row["method"], row["views"]) == ("okdph (release)", "hflip, cutout, augment")
  assert row["n"] == "3"
  assert row["mean of students, last epoch"] == "36.00 ± 1.00"  # of 0.3 and `last`
  assert row["best single network on test, last epoch"] == "42.00 ± 2.00"  # ddof = 1, not 1.63
  # The hybrid's first evaluation; the ensemble does not count.
  assert row["best single network and epoch on test"] == "45.00 ± 0.00"
  assert row["best on test, as the paper counts"] == "45.00 ± 0.00"
  assert row["paper"] == "44.14"
  assert (row["epochs"], row["evaluations"]) == ("300", "2")
  assert (row["minutes"], row["parameters"]) == ("2", "933,812")


def test_a_single_run_has_no_spread_and_readers_stand_apart():
  text = rendered([made()])
  assert "### cifar10, 1 % of the training set, resnet32" in text
  assert "± 0" not in text
  single, ensemble = text.split("Ensembles and fused heads")
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
  assert "chosen on validation" not in rendered([made()])
  row = rows(rendered([made(validation=(0.9, 0.1, 0.2, 0.3))]))[0]
  assert row["single network and epoch chosen on validation"] == "30.00"


def test_variants_are_told_apart_by_what_differs_within_the_method():
  runs = [
    made(options={"students": 2, "omega": 0.8, "hybrid_gradient": True}),
    made(options={"students": 2, "omega": 0.8, "hybrid_gradient": False}),
    made(method="base", options={"students": 3}),
    made(method="base", options={"students": 1}, wrappers=({"name": "sam", "rho": 0.05},)),
    made(method="dml", views=("hflip", "cutout")),
    made(method="dml", views=("crop(4)|flip",) * 2),
  ]
  methods = [row["method"] for row in rows(rendered(runs)) if "reader" not in row]
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
  text = tables.head(runs)
  assert [line for line in text.splitlines() if line.startswith("#")] == [
    "### cifar10, 1 % of the training set, resnet32",
    "### cifar10, resnet32",
    "### cifar10, vgg16",
    "### cifar10, noisy inputs, resnet32",
  ]
  assert rows(text)[-1]["views"] == r"hflip\|noise(1)"


def test_other_epochs_are_another_row():
  found = rows(rendered([made(), made(epochs=30)]))[:2]
  assert [row["method"].partition(", ")[2] for row in found] == ["epochs=30", "epochs=300"]
  assert [row["paper"] for row in found] == ["", "44.14"]


def test_the_short_table_begins_with_the_most_accurate():
  runs = [made(seed, (0.3, 0.4 + seed / 100, 0.35, 0.45)) for seed in range(2)]
  runs += [made(7, (0.5, 0.4, 0.4, 0.7), method="base", options={"students": 1}, views=["a"])]
  runs += [made(7, (0.6, 0.2, 0.4, 0.7), method="dml", options={"students": 2})]
  base, dml, okdph = rows(tables.head(runs, "base"))
  assert (dml["method"], dml["mean of students"]) == ("dml", "40.00")
  assert dml["best single network"] == "60.00"  # its ensemble is not a network
  assert (base["method"], base["views"], base["mean of students"]) == ("base", "a", "45.00")
  assert okdph["best single network"] == "40.50 ± 0.71" and okdph["n"] == "2"
  beside = [(row["best on test, as the paper counts"], row["paper"]) for row in (okdph, dml)]
  assert beside == [("45.00 ± 0.00", "44.14"), ("60.00", "38.66 (hflip)")]
  assert not base["best on test, as the paper counts"]  # the paper has no number beside it
  # dml and base have seed 7, okdph has others
  assert [row["difference"] for row in (base, dml, okdph)] == ["baseline", "-5.00", ""]
  with pytest.raises(ValueError, match="--baseline=kd: no such row"):
    tables.head(runs, "kd")


def run_of(method, dataset="cifar10", network="resnet32", wrappers=(), **changes):
  """The config of a run as its result.json has it."""
  data = {"name": dataset, "fraction": changes.pop("fraction", 1.0), "train": "train"}
  data |= {"validation": changes.pop("validation", 0), "replacement": True}
  data["seed"] = 42
  name, students = method["name"], method.get("students", 2)
  plain = settings.PLAIN_VIEW.get(dataset, "hflip")
  views = settings.okdph_views(dataset, students) if name == "okdph" else (plain,) * students
  training = settings.CIFAR_TRAINING
  if dataset == "imagenet2012":
    training = settings.IMAGENET_TRAINING
    data |= {"test": "validation", "image_size": 224}
  data |= changes.pop("data", {})
  config = dict(data=data, network=network, method=method, wrappers=wrappers, views=views)
  return json.loads(json.dumps(config | training | changes))


def release(name, **options):
  return {"name": name} | settings.RELEASE.get(name, {}) | options


def okdph(omega, beta, gamma, fuse_every, **options):
  cell = dict(omega=omega, beta=beta, gamma=gamma, fuse_every=fuse_every)
  return release("okdph", students=2) | cell | options


SAM = {"name": "base", "students": 1, "label_smoothing": 0.1}
ASAM = {"name": "asam", "rho": 0.1, "eta": 0.0}
SWA = {"name": "swa", "start": 241, "learning_rate": 0.001}
TABLE_6 = okdph(0.8, 0.8, 0.5, "1 epoch")
PUBLISHED = dict(
  hybrid_gradient=True, weights="dirichlet", fuse_with="updated", fuse_clock="run"
)
NOISY = ["hflip|noise"] * 2
KD = {"name": "kd", "task_weight": 0.5, "distill_weight": 0.5, "temperature": 1.0}
KD |= {"targets": "soft"}


@pytest.mark.parametrize(
  ("config", "cell"),
  [
    (run_of(release("dml")), "94.27"),
    (run_of(release("dml"), epochs=200), "None"),
    (run_of(release("dml"), validation=5000), "None"),
    (run_of(release("dml"), init_from="runs/other"), "None"),
    (run_of(release("dml", students=4)), "None"),
    (run_of(release("dml", students=4), "cifar100", "vgg16"), "74.17"),
    (run_of(release("dml"), fraction=0.01), "38.66"),
    (run_of(release("dml"), fraction=0.01, data={"seed": 7}), "None"),  # other images
    (run_of(release("dml"), fraction=0.01, data={"replacement": False}), "None"),
    (run_of(release("dml"), data={"test": "test[:10%]"}), "None"),
    (run_of(release("dml"), data={"image_size": 64}), "None"),
    (run_of(release("dml"), data={"normalise_as": "cifar100"}), "None"),
    (run_of(release("dml"), data={"dir": "elsewhere", "memory_limit": 0}), "94.27"),
    (run_of(release("dml"), network_options={"width": 32}), "None"),
    (run_of(release("dml"), accumulate=2), "None"),
    (run_of(release("dml"), batch_norm_images=64), "None"),
    (run_of(release("dml"), compute="bfloat16"), "None"),
    (run_of(release("dml"), generations=2), "None"),
    (run_of(release("dml"), nesterov=True), "None"),
    (run_of(release("dml"), devices=2, eval_every_epochs=60, snapshots=5), "94.27"),
    (run_of(release("dml", same_init=False)), "94.27"),
    (run_of(release("dml", same_init=True)), "None"),
    (run_of(release("dml"), views=NOISY), "83.02"),
    (run_of(release("dml"), views=NOISY, test_view="plain | noise"), "83.02"),
    (run_of(release("dml"), views=["hflip|noise(1)", "hflip|noise(1.0)"]), "83.02"),
    (run_of(release("dml"), views=NOISY, test_view="plain|noise(5)"), "None"),
    (run_of(release("dml"), views=["hflip|noise(0.1)"] * 2), "None"),
    (run_of(release("dml"), views=["hflip|noise", "hflip"]), "None"),
    (run_of(release("dml"), views=["any(hflip|noise,hflip)"] * 2), "None"),
    (run_of(release("dml"), test_view="plain|noise"), "None"),
    (run_of(release("dml"), test_view="hflip"), "None"),
    (run_of(TABLE_6), "95.01 ± 0.09"),
    (run_of(TABLE_6 | PUBLISHED), "95.01 ± 0.09"),
    *((run_of(TABLE_6 | {name: value}), "None") for name, value in PUBLISHED.items()),
    (run_of(TABLE_6 | {"fuse_every": "1 epochs"}), "95.01 ± 0.09"),
    (run_of(TABLE_6 | {"temperature": 3.0}), "None"),
    (run_of(TABLE_6 | {"hybrid_teaches": False}), "None"),
    (run_of({k: v for k, v in TABLE_6.items() if k != "hybrid_teaches"}), "95.01 ± 0.09"),
    (run_of(okdph(0.2, 0.8, 0.5, "1 epoch")), "94.49"),  # Table 4
    (run_of(okdph(0.8, 0.8, 0.0, "1 epoch")), "94.17"),
    (run_of(okdph(0.8, 0.8, 0.5, "200 steps")), "94.81"),
    (run_of(okdph(0.2, 0.2, 0.5, "1 epoch")), "None"),
    (run_of(okdph(0.2, 0.8, 0.5, "1 epoch"), network="wrn20_8"), "None"),
    (run_of(okdph(0.5, 0.5, 0.5, "5 steps"), "cifar100", "wrn20_8"), "78.88 ± 0.08"),
    (run_of(okdph(0.3, 0.3, 1.0, "1 epoch", students=4), network="vgg16"), "95.78"),
    (run_of(release("dml"), "imagenet2012", "resnet18"), "69.82"),
    (run_of(release("dml"), "imagenet2012", "resnet18", data={"image_size": None}), "None"),
    (run_of(okdph(0.8, 0.8, 0.5, "5 steps"), "imagenet2012", "resnet18"), "None"),
    (run_of(okdph(1.0, 0.5, 0.5, "5 steps"), fraction=0.01), "44.14"),
    (run_of(okdph(0.8, 0.8, 0.5, "5 steps"), fraction=0.01), "None"),
    (run_of(okdph(1.0, 0.5, 0.5, "5 steps", students=3), fraction=0.01), "None"),
    (run_of(release("kdcl")), "93.91"),
    (run_of(release("kdcl"), "cifar100", "resnet110"), "78.28 ± 0.32"),
    (run_of(release("kdcl", target="minlogit")), "None"),
    (run_of(release("one")), "94.31"),
    (run_of(release("one", detach_target=True)), "94.31"),
    (run_of(release("one", students=3)), "94.36"),
    (run_of(release("okddip", students=3)), "94.22"),
    (run_of(release("pcl", students=3, decay=0.999)), "94.22"),
    (run_of(release("pcl", students=3), "cifar10", "densenet40_12"), "92.25"),
    (run_of(release("pcl"), "cifar10", "densenet40_12"), "None"),
    (run_of(release("one", students=3), fraction=0.01), "None"),
    (run_of(release("ffl"), network="vgg16", fraction=0.1), "79.26"),
    (run_of(release("mean_teacher"), "cifar100"), "71.29"),
    (run_of(SAM, wrappers=[ASAM]), "94.41"),
    (run_of(SAM, wrappers=[{"name": "sam", "rho": 0.1}]), "None"),
    (run_of(SAM, "cifar100", wrappers=[ASAM]), "None"),  # its radius is 0.05
    (run_of(SAM | {"label_smoothing": 0.0}, wrappers=[SWA]), "94.00"),
    (run_of(SAM | {"students": 3}, wrappers=[ASAM]), "None"),
    (run_of(TABLE_6, wrappers=[SWA]), "None"),
    (run_of({"name": "base", "students": 1}), "None"),
    (run_of(KD, "imagenet2012", "resnet18"), "None"),
    (run_of(release("one", detach_target=None)), "None"),
    (run_of(release("okddip", detach_mean=True)), "None"),
    (run_of(release("ffl", fusion_weight_decay=1e-5)), "94.32"),
    (run_of(release("ffl", fusion_weight_decay=1e-3)), "None"),
    (run_of(release("pcl", decay=0.9)), "None"),
    (run_of(release("kr", fade=True)), "93.37"),
    (run_of(release("kr", distances="glove.npy")), "None"),
    (run_of(TABLE_6, "digits", "resnet8"), "None"),
  ],
)
def test_the_paper_s_number_belongs_to_the_run_it_describes(config, cell):
  assert str(paper.cell(config)) == cell


def test_a_draw_that_was_not_recorded_is_not_known_to_be_the_paper_s():
  for fraction, cell in ((0.01, "None"), (1.0, "94.27")):
    config = run_of(release("dml"), fraction=fraction)
    del config["data"]["seed"]
    assert str(paper.cell(config)) == cell
  run = made()
  del run.result["config"]["data"]["seed"]
  assert "paper" not in rows(rendered([run]))[0]


def test_the_paper_s_number_for_noisy_inputs():
  views = [view + "|noise" for view in settings.okdph_views("cifar100", 2)]
  config = run_of(okdph(1.0, 0.0, 0.5, "5 steps"), "cifar100", views=views)
  assert str(paper.cell(config)) == "52.89"
  assert paper.setting(config) == "noisy"
  assert paper.without_noise("hflip|noise(1)") == "hflip"
  assert paper.cell(run_of(TABLE_6, "cifar10", views=views, fraction=0.1)) is None


@pytest.mark.parametrize("name", settings.RELEASE)
def test_the_release_s_options_are_complete(name):
  """Else a run that differs in one that is missing would be given the paper's number."""
  known = defaults(METHODS["base" if name in ("sam", "swa") else name]).keys()
  tuned = {"omega", "beta", "gamma", "fuse_every", "students"}
  assert settings.RELEASE[name].keys() | tuned == known | tuned
  assert paper.EITHER.get(name, {}).keys() <= known


@pytest.mark.parametrize(
  ("method", "readers"),
  [
    ("base", "student_0 student_1"),
    ("okdph", "student_0 student_1 hybrid"),
    ("one", "student_0 student_1 ensemble"),
    ("okddip", "student_0 leader ensemble"),
    ("ffl", "student_0 student_1 fused"),
    ("pcl", "mean_0 mean_1"),
    ("mean_teacher", "student_0 teacher"),
    ("swa", "student_0 swa_student_0"),
  ],
)
def test_the_readers_that_the_paper_counts(method, readers):
  there = set(readers.split()) | {"center", "gated", "concatenated", "ema_student_0"}
  there |= {"ensemble", "fused"}
  assert {name for name in there if paper.counts(method, name)} == set(readers.split())


def test_an_ensemble_that_counts_is_named():
  run = made(method="one", options=settings.RELEASE["one"])
  row = rows(rendered([run]))[0]
  assert row["best on test, as the paper counts"] == "45.00 (ensemble)"
  assert row["paper"] == "41.08 (hflip)"


def test_the_paper_s_number_stands_beside_what_it_counts_alone():
  runs = [made(), made(network="vgg16"), made(method="one", options=settings.RELEASE["one"])]
  found = tables.sections(runs)
  (overview,) = tables.overview(found)
  assert overview.columns == ["method", "resnet32", "vgg16"]
  lines = csv.DictReader(io.StringIO(tables.csv(found)))
  beside = [line for line in lines if line["paper"]]
  assert {(line["reader"], line["measure"]) for line in beside} == {
    ("as the paper counts", "best on test")
  }
  assert [[line[name] for name in ("single", "mean", "paper")] for line in beside] == [
    ["True", "45.0000", "44.1400"],
    ["False", "45.0000", "41.0800"],
  ]


def test_spread():
  assert statistics.spread([]) == ""
  assert statistics.spread([0.5]) == "50.00"
  assert statistics.spread([0.5, 0.6]) == f"55.00 ± {math.sqrt(50):.2f}"


def test_files_that_are_no_results_are_named_and_the_others_stand(tmp_path, capsys):
  (tmp_path / "a" / "run").mkdir(parents=True)
  Run(tmp_path / "a" / "run").write_result(made(0).result)
  Run(tmp_path / "a" / "run").write_record({}, {})
  (tmp_path / "a" / "run" / "evaluation").mkdir()
  (tmp_path / "a" / "run" / "evaluation" / "hybrid.json").write_text("{}")  # not a result
  Run(tmp_path / "a").write_result(made(1).result)
  (tmp_path / "again.json").write_text(json.dumps(made(1).result))
  (tmp_path / "torn.json").write_text(json.dumps(made(2).result)[:-40])
  (tmp_path / "foreign.json").write_text('{"ratio": 1.1}')
  (tmp_path / "list.json").write_text("[1, 2]")
  for name, wrong in (("best", None), ("last", "0.4")):
    result = made(3).result
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
    "run",  # its result alone is shown: the record is none
    "torn.json",
  ]


@pytest.mark.parametrize("arguments", [["DIR"], ["DIR/missing"], ["curves", "DIR"]])
def test_nothing_to_show_is_one_line_and_exit_code_2(tmp_path, capsys, arguments):
  arguments = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
  assert report.main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == "" and str(tmp_path) in err
  assert err.count("\n") == 1


def test_curves_draws_a_line_per_reader(tmp_path, monkeypatch):
  from matplotlib.axes import Axes

  drawn, plot = [], Axes.plot

  def recorded(axes, x, y, dash, **style):
    drawn.append((style["label"], dash, y[-1]))
    return plot(axes, x, y, dash, **style)

  monkeypatch.setattr(Axes, "plot", recorded)
  folder(tmp_path / "run", "okdph", 0, last=0.5, validation=True)
  out = tmp_path / "new" / "curves.svg"
  assert report.main(["curves", str(tmp_path / "run"), f"--out={out}"]) == 0
  kinds = {"student_0": "-", "student_1": "-", "hybrid": "--", "ensemble": ":"}
  assert {name: dash for name, dash, _ in drawn} == kinds and len(drawn) == 8  # two splits
  assert drawn[0][2] == pytest.approx(50) and out.stat().st_size > 1000


def test_comparison_draws_students_ensembles_and_differences(tmp_path, monkeypatch):
  from matplotlib.axes import Axes

  drawn = []
  scatter = Axes.scatter

  def recorded(axes, x, y, **style):
    drawn.append((style.get("label", "difference"), x, y))
    return scatter(axes, x, y, **style)

  monkeypatch.setattr(Axes, "scatter", recorded)
  rows = [
    plots.Compared("dml", [0.5, 0.6], [0.7, 0.7], Interval(2, 0.1, 0.05, 0.15)),
    plots.Compared("base", [0.4], [], None),
  ]
  plots.comparison(rows, "digits", tmp_path / "new" / "accuracy.png")
  assert (tmp_path / "new" / "accuracy.png").stat().st_size > 1000
  assert [(label, y) for label, _, y in drawn] == [
    ("mean of students", 0),  # the least accurate is the lowest
    (plots.SEVERAL, 1),
    ("mean of students", 1),
    ("its runs", [1, 1]),
    ("difference", 1),
  ]
  numbers = [x for label, x, _ in drawn if label != "its runs"]
  assert numbers == pytest.approx([40, 70, 55, 10])


def test_it_runs_without_jax_and_tensorflow(tmp_path):
  (tmp_path / "result.json").write_text(json.dumps(made().result))
  line = {"step": 1, "epoch": 1, "seconds": 1, "losses": {}}
  line["accuracy"] = {"test": {"a": 0.5}}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
  code = f"""
import sys
absent = {{"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "clu", "ml_collections"}}
for name in absent:
  sys.modules[name] = None
from okdph_jax.cli.report import main
assert main([{str(tmp_path)!r}]) == 0
assert main([{str(tmp_path)!r}, "--out={tmp_path}/report"]) == 0
assert main(["curves", {str(tmp_path)!r}, "--out={tmp_path}/curves.png"]) == 0
"""
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
