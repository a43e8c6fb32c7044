"""Sweep files: every cell of ours is valid and there once, and the paper's numbers fit."""

import collections
import functools
import json
from pathlib import Path

import pytest

from okdph_jax.report import paper
from okdph_jax.sweep.cells import arguments, read, select, stacked

ROOT = Path(__file__).parents[2]
SWEEPS = sorted(file.stem for file in (ROOT / "configs" / "sweeps").glob("[!_]*.py"))


@functools.cache
def cells(name):
  return read(name, Path("runs") / name, seeds=1)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_cell_can_be_run_and_none_is_there_twice(name):
  found = cells(name)
  configs = collections.Counter(json.dumps(c.config.to_dict(), sort_keys=True) for c in found)
  assert max(configs.values()) == 1
  assert len({cell.name for cell in found}) == len(found)
  for cell in found:  # a teacher comes before its students
    names = [other.name for other in found[: found.index(cell)]]
    assert cell.teacher is None or cell.teacher.path.name in names


def numbers(*tables):
  """The accuracies of tables of the paper, each with how often it is there."""
  flat = collections.Counter()
  for table in tables:
    for value in table.values():
      if isinstance(value, dict):
        flat += numbers(value)
      else:
        flat += collections.Counter(float(text.partition("±")[0]) for text in value.split())
  return flat


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("table1", numbers(paper.TABLE_1)),
    ("table2", numbers(paper.TABLE_2)),
    ("table3", numbers(paper.TABLE_3)),
    ("table4", numbers(paper.TABLE_4)),
    ("table_s3", numbers(paper.TABLE_S3)),
  ],
)
def test_a_table_s_cells_are_those_of_the_paper(name, expected):
  """With the release's switches too: `okdph` and `okdph-release` have one number."""
  found = collections.Counter()
  for cell in cells(name):
    number = paper.cell(cell.config.to_dict())
    if number and not cell.entry.endswith("-release"):
      found[number.accuracy] += 1
  if name == "table4":  # each column has the common cell; students are of Table S3
    expected = expected - collections.Counter({95.01: 3}) + collections.Counter([95.03, 95.13])
  if name == "table2":
    expected = expected - numbers({row: paper.TABLE_2[row] for row in paper.UNPUBLISHED})
  assert found == expected


def test_table_5():
  """The same run of CIFAR-10 is in Table 4, where omega = 1 has another number."""
  found = {cell.entry: str(paper.cell(cell.config.to_dict()) or "") for cell in cells("table5")}
  assert found == {
    "cifar10-ce": "93.26",
    "cifar10-kd": "94.47",
    "cifar10-fusion": "94.75",
    "cifar10-fusion-target": "94.51",
    "cifar10-loss": "95.01 ± 0.09",
    "cifar100-ce": "72.76",
    "cifar100-kd": "73.31",
    "cifar100-fusion": "73.60",
    "cifar100-fusion-target": "74.10 ± 0.22",
    "cifar100-loss": "",
  }


FILE = """
SEEDS = 2

def get_sweep():
  return {
    "teacher": {"config": "digits:base,resnet8", "seeds": 1},
    "own": {"config": "digits:base,resnet8", "label": 0},
    "kd": {"config": "digits:kd,resnet8", "teacher": "teacher", "views": ("crop(1)",)},
    "self": {"config": "digits:kd,resnet8", "teacher": "kd:student_0@last"},
  }
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(FILE.replace('"label": 0', '"epochs": 3'))
  return path


def test_a_file_s_seeds_names_and_teachers(file):
  found = {cell.name: cell for cell in read(str(file), Path("root"))}
  assert list(found) == [
    *("teacher-seed42", "own-seed42", "kd-seed42", "self-seed42"),
    *("own-seed43", "kd-seed43", "self-seed43"),
  ]
  cell = found["kd-seed43"]
  assert cell.config.seed == 43 and cell.config.views == ("crop(1)",)
  assert cell.teacher.path == Path("root/teacher-seed42")  # it is trained once
  assert found["self-seed43"].teacher.path == Path("root/kd-seed43")
  assert cell.options == (
    "--config=digits:kd,resnet8",
    "--config.teacher=root/teacher-seed42",
    "--config.views=('crop(1)',)",
    "--config.seed=43",
    "--workdir=root/kd-seed43",
  )
  assert len(read(str(file), Path("root"), seeds=5)) == 16


@pytest.mark.parametrize(
  ("old", "new", "overrides", "says"),
  [
    (
      '"digits:base,resnet8", "seeds": 1',
      '"digits:kd", "generations": 2, "seeds": 1',
      (),
      "trains",
    ),
    ('"seeds": 1', '"seeds": 2', (), "kd: its teacher, teacher, has no seed 44"),
    ("digits:base", "digits:kd", [("teacher", "x")], "kd: the file names its teacher, teacher"),
    ('"seeds": 1', '"seeds": "1"', (), "teacher: seeds is '1', a str; it must be int"),
    ('"teacher": "teacher"', '"teacher": None', (), "kd: teacher is None, a NoneType"),
    ('"teacher": {', "1: {", (), "names of entries"),
  ],
)
def test_a_teacher_that_there_will_not_be(tmp_path, old, new, overrides, says):
  path = tmp_path / "mine.py"
  text = FILE.replace('"label": 0', '"epochs": 3').replace("SEEDS = 2", "SEEDS = 3")
  path.write_text(text.replace(old, new))
  with pytest.raises(ValueError) as refusal:
    read(str(path), Path("root"), overrides=overrides)
  assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_replicates_are_selected_by_what_differs_between_them(tmp_path):
  sweep = tmp_path / "mine.py"
  sweep.write_text('REPLICATE = ("seed", "data.seed")\nSEEDS = 3\n' + FILE.split("\n", 2)[2])
  sweep.write_text(sweep.read_text().replace('"label": 0', '"epochs": 3'))
  found = select(read(str(sweep), Path("root")), "data.seed=43")
  assert {cell.config.data.seed for cell in found} == {43} and found


def test_a_teacher_that_the_config_names_is_kept(tmp_path):
  config = tmp_path / "taught.py"
  config.write_text(
    "from okdph_jax.experiment.config import load_config\n"
    "def get_config():\n"
    "  return load_config('digits:kd', [('teacher', 'runs/theirs')])\n"
  )
  sweep = tmp_path / "mine.py"
  sweep.write_text(f"def get_sweep():\n  return {{'kd': {{'config': {str(config)!r}}}}}\n")
  assert [cell.config.teacher for cell in read(str(sweep), Path("root"), 1)] == ["runs/theirs"]


@pytest.mark.parametrize(
  ("only", "names"),
  [
    ("method=kd", {"kd", "self"}),
    ("method=base,epochs=3", {"own"}),
    ("entry=t*,entry=own", {"teacher", "own"}),
    ("run=kd-seed43", {"kd"}),
    ("network=resnet8,seed=42,dataset=digits", {"teacher", "own", "kd", "self"}),
  ],
)
def test_some_of_the_cells(file, only, names):
  assert {cell.entry for cell in select(read(str(file), Path("root")), only)} == names


def test_a_wrapper_is_selected_as_a_method_is():
  chosen = select(cells("table1"), "method=sam,network=resnet32")
  assert {cell.entry for cell in chosen} == {"cifar10-resnet32-sam", "cifar100-resnet32-sam"}


@pytest.mark.parametrize(
  ("only", "says"),
  [
    ("method", "'method' is not NAME=VALUE"),
    ("methd=dml", "no run has a 'methd'; did you mean 'method'"),
    ("method=dml", "no run has method=dml; there are base, kd"),
    ("method=kd,epochs=3", "no run has epochs=3; there are 20"),
  ],
)
def test_a_selection_of_nothing_is_refused(file, only, says):
  with pytest.raises(ValueError) as refusal:
    select(read(str(file), Path("root")), only)
  assert says in str(refusal.value)


@pytest.mark.parametrize(
  ("entry", "says"),
  [
    ('"label": 0', "the sweep mine, own: the config has no option 'label'"),
    ('"method.omega": 0.5', "own: method base has no option 'omega'"),
    ('"method.label_smoothing": 2.0', "own: base: label_smoothing=2.0 is outside [0, 1)"),
    ('"views": ("hflip", "flip")', "own: base needs 1 view"),
    ('"wrappers": ({"name": "sma"},)', "own: unknown wrapper 'sma'; did you mean 'swa'"),
    ('"network": "resnet9"', "own: unknown network 'resnet9'"),
    ('"epochs": "many"', "own: "),
    ('"seed": 3', "own: seeds are set by SEEDS in the file"),
  ],
)
def test_a_bad_cell_is_one_line(tmp_path, entry, says):
  path = tmp_path / "mine.py"
  path.write_text(FILE.replace('"label": 0', entry))
  with pytest.raises(ValueError) as refusal:
    read(str(path), Path("root"))
  assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("def get_sweep(): return []", "must return {name: options}"),
    (
      "def get_sweep(): return {'a b': {'config': 'digits'}}",
      "names of entries may contain letters",
    ),
    ("def get_sweep(): return {'a': {'epochs': 3}}", "lack 'config'"),
    ("def get_sweep(): return {'a': {'config': 'digitz'}}", "did you mean 'digits'"),
    ("def get_sweep(): return 1 / 0", "ZeroDivisionError"),
    ("x = 1", "get_sweep"),
  ],
)
def test_a_file_that_is_no_sweep(tmp_path, text, says):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(ValueError, match="mine") as refusal:
    read(str(path), Path("root"))
  assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_unknown_sweep_lists_those_there_are():
  with pytest.raises(ValueError, match="no sweep file tabel1; did you mean 'table1'"):
    read("tabel1", Path("root"))


def test_the_seeds_of_a_config_go_together_where_they_are_at_one_step(file, tmp_path):
  found = {cell.name: cell for cell in read(str(file), tmp_path, seeds=4)}
  own = [cell for cell in found.values() if cell.entry == "own"]
  assert [len(group) for group in stacked(own, 3)] == [3, 1]
  together = arguments(own)
  assert f"--workdir={tmp_path}/own-seed{{seed}}" in together
  assert together[-1] == "--seeds=42,43,44,45"
  assert not any(word.startswith("--config.seed=") for word in together)
  for cell, steps in zip(own, ((), (2, 4), (1, 2), (6,)), strict=True):
    for step in steps:
      (cell.run.path / "checkpoints" / str(step)).mkdir(parents=True)
  names = [[cell.config.seed for cell in group] for group in stacked(own, 9)]
  assert names == [[42], [43, 44], [45]]
  taught = [[c.name for c in g] for g in stacked([c for c in found.values() if c.teacher], 9)]
  assert ["kd-seed42", "kd-seed43", "kd-seed44", "kd-seed45"] in taught  # by one teacher
  assert ["self-seed42"] in taught
