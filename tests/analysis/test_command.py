"""`okdph analysis` on a tiny run: every analysis writes its numbers and its figure."""

import json
import shutil
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest

from okdph_jax.analysis import dot, landscape
from okdph_jax.analysis.points import unstacked
from okdph_jax.analysis.subject import Subject, subjects, targets
from okdph_jax.cli import analysis
from okdph_jax.core import Batch
from okdph_jax.experiment import paper
from okdph_jax.experiment.fit import fit
from okdph_jax.run import Run
from okdph_jax.runtime import host
from tests import runs

NETWORK = "tests.nets:Small"


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
  """Many programs, none of which runs for long."""
  options = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(host, "compiler_options", lambda: options)
    yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Two students of two epochs, a snapshot of each."""
  folder = tmp_path_factory.mktemp("analysis")
  config = paper.recipe("arrays", "okdph", NETWORK)
  config.data.dir = str(runs.arrays(folder / "data.npz"))
  config.views = ("plain",) * 3
  config.update(batch_size=16, epochs=2, snapshots=1, milestones=())
  fit(ml_collections.ConfigDict(config), str(folder / "run"))
  return folder / "run"


def test_every_batch_of_images_is_split_over_the_devices(workdir):
  for batch in unstacked(Subject(workdir, network=NETWORK).images(16, batch=8)):
    for array in batch:
      assert array.sharding.spec == jax.sharding.PartitionSpec("data")


COMMANDS = {
  "landscape": ["--size=3", "--statistics-images=16"],
  "hessian": ["--k=2", "--probes=2", "--readers=student_0"],
  "sharpness": ["--draws=2", "--readers=student_0"],
  "pac_bayes": ["--points=2"],
  "barrier": ["--points=3"],
  "noise": ["--readers=student_0,center"],
  "dot": [],
  "ablation": ["--readers=student_0,student_1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_analysis_prints_a_table_and_writes_numbers_and_figures(
  name, workdir, tmp_path, capsys
):
  common = [f"--workdir={workdir}", f"--network={NETWORK}", f"--out={tmp_path}"]
  settings = ["--images=16", "--batch=8"]
  assert analysis.main([name, *common, *settings, *COMMANDS[name]]) == 0
  assert f"{name}.json" in capsys.readouterr().out
  written = json.loads((tmp_path / f"{name}.json").read_text())
  assert written["analysis"] == name and written["results"]
  assert written["settings"]["images"] == 16 and written["settings"]["seed"] == 0
  assert written["environment"]["versions"]["jax"]
  assert written["runs"][0]["config"]["seed"] == 42
  assert (tmp_path / f"{name}.png").stat().st_size > 5000
  assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
  assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("plane", ["nearest", "random", "line"])
def test_the_other_planes(plane, workdir, tmp_path):
  common = [f"--workdir={workdir}", f"--network={NETWORK}", f"--out={tmp_path}"]
  settings = ["--images=16", "--batch=8", "--size=3", "--statistics=mixed"]
  assert analysis.main(["landscape", f"--plane={plane}", *common, *settings]) == 0
  written = json.loads((tmp_path / "landscape.json").read_text())
  assert written["settings"]["plane"] == plane


def test_a_random_plane_has_the_network_in_its_middle(workdir):
  subject = Subject(workdir, network=NETWORK)
  options = dict(plane="random", readers=["student_0"], statistics="mixed", images=16, batch=8)
  odd, even = (landscape.analyse([subject], size=size, **options) for size in (3, 2))
  assert odd.rows == even.rows and len(even.numbers["run: student_0"]["x"]) == 3


def test_images_that_cannot_be_read_are_left_out(workdir):
  subject = Subject(workdir, network=NETWORK)
  whole = subject.raw_images(16, batch=8)

  class Skipped:
    def __len__(self):
      return 32

    def __getitem__(self, chosen):
      return self

    def padded(self, size):
      for image, label in zip(whole.image, whole.label, strict=True):
        label = np.arange(8)
        yield Batch(np.where(label[:, None, None, None] < 2, 0, image), label), label > 1

  subject.dataset = SimpleNamespace(train=Skipped())
  left = subject.raw_images(16, batch=8)
  assert left.label.tolist() == [[2, 3, 4, 5, 6, 7]] * 2
  np.testing.assert_array_equal(left.image, whole.image[:, 2:])


def test_the_start_of_a_run_that_did_not_keep_it_follows_from_its_seed(workdir):
  subject = Subject(workdir, network=NETWORK)
  assert subject.steps() == [0, 2, 4]
  kept, computed = subject.learner(0), subject._start
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), kept.params, computed.params
  )


def test_the_last_snapshot_is_the_last_checkpoint(workdir):
  subject = Subject(workdir, network=NETWORK)
  (target,) = targets([subject], ["student_1"])
  kept = subject.trajectory()[4]["student_1"]["params"]["Dense_0"]["kernel"]
  np.testing.assert_array_equal(target.variables["params"]["Dense_0"]["kernel"], kept)
  assert target.test_accuracy == subject.lines[-1]["accuracy"]["test"]["student_1"]


def test_of_one_snapshot_the_last_is_taken_and_updates_need_two(workdir, tmp_path):
  assert list(Subject(workdir, network=NETWORK).trajectory(1)) == [4]
  run = Run(shutil.copytree(workdir, tmp_path / "run", symlinks=True))
  for step in (2, 4):
    shutil.rmtree(run.snapshots[step])
  with pytest.raises(ValueError, match="has one snapshot"):
    dot.analyse([Subject(run.path, network=NETWORK)])


def test_runs_of_one_name_are_told_apart_by_the_folders_above(workdir, tmp_path):
  folders = [tmp_path / "a" / "c10", tmp_path / "b" / "c10", tmp_path / "b" / "c100"]
  for folder in folders:
    shutil.copytree(workdir, folder / "run", symlinks=True)
  found = subjects([folder / "run" for folder in folders] + [workdir], NETWORK)
  above = workdir.parents[1].name  # of a folder named "run" too
  assert [subject.name for subject in found[:3]] == ["a/c10/run", "b/c10/run", "b/c100/run"]
  assert found[3].name == f"{above}/{workdir.parent.name}/run"
  assert [subject.name for subject in subjects([workdir], NETWORK)] == ["run"]


def test_what_a_run_started_from_is_found_from_anywhere(workdir, monkeypatch):
  monkeypatch.setattr("okdph_jax.experiment.build.build", lambda config, dataset: config)
  subject = Subject(workdir, network=NETWORK)
  subject.config |= {"init_from": "../source:student_0", "teacher": "../teacher@last"}
  config = subject.experiment
  assert config.init_from == f"{workdir.parent}/source:student_0"
  assert config.teacher == f"{workdir.parent}/teacher@last"


def test_the_ensemble_of_a_run_is_one_network(workdir):
  """A teacher that is an ensemble: for the explanation by multiple views."""
  images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 1)).astype(np.uint8)
  run = Run(workdir)
  students = [run.network(f"student_{i}", network=NETWORK)(images) for i in range(2)]
  ensemble = run.network("ensemble", network=NETWORK)(images)
  np.testing.assert_allclose(ensemble, np.mean(students, 0), atol=1e-5)


def test_what_cannot_be_analysed_is_said_in_one_line(workdir, tmp_path, capsys):
  own = [f"--workdir={workdir}", f"--network={NETWORK}"]
  for arguments, message in (
    (["hesian"], "did you mean 'hessian'?"),
    (["hessian"], "--workdir=DIR is needed"),
    (["hessian", f"--workdir={tmp_path}"], "it has no config.json"),
    (["landscape", f"--workdir={workdir}", "--size=1"], "1 is less than 2"),
    (["barrier", f"--workdir={workdir}", "--points=2"], "2 is less than 3"),
    (
      ["hessian", f"--workdir={workdir}", f"--workdir={workdir}/.", f"--network={NETWORK}"],
      "twice",
    ),
    (["hessian", f"--workdir={workdir}"], "--network=tests.nets:Small"),
    (
      ["noise", f"--workdir={workdir}", f"--network={NETWORK}", "--readers=teacher"],
      "no single network teacher; it has student_0",
    ),
    (["barrier", f"--workdir={workdir}", "--readers=student_0"], "--readers"),
    (["pac_bayes", *own, "--readers=teacher"], "no network teacher; it has center"),
    (["landscape", *own, "--readers=student_0"], "readers are of plane=random"),
    (["landscape", *own, "--which=last"], "which=last has no effect"),
    (["pac_bayes", *own, "--steps=-1"], "-1 is less than 0"),
  ):
    assert analysis.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_folder_or_a_pattern_stands_for_its_finished_runs(workdir, tmp_path, capsys):
  for k in (10, 2):
    (tmp_path / "born" / f"generation_{k}").mkdir(parents=True)
    for name in ("config.json", "result.json")[: 1 if k == 10 else 2]:
      (tmp_path / "born" / f"generation_{k}" / name).write_text((workdir / name).read_text())
  with pytest.raises(ValueError, match="no folder has such a name"):
    subjects([tmp_path / "b?n*"], NETWORK)
  for where in (tmp_path, tmp_path / "born", tmp_path / "bo*"):
    (found,) = subjects([where], NETWORK)
    assert found.name == "born/generation_2"
    assert capsys.readouterr().err == f"{where}: 1 finished runs of 2\n"
  ten = tmp_path / "born" / "generation_10"
  (ten / "metrics.jsonl").write_text((workdir / "metrics.jsonl").read_text())
  assert subjects([ten], NETWORK)[0].name == "born/generation_10"
  assert capsys.readouterr().err == f"{ten}: not finished, taken as it is at epoch 2 of 2\n"
  (ten / "result.json").write_text((workdir / "result.json").read_text())
  names = [found.name for found in subjects([tmp_path], NETWORK)]
  assert names == ["born/generation_2", "born/generation_10"]
  for k in (10, 2):
    (tmp_path / "born" / f"generation_{k}" / "result.json").unlink()
  with pytest.raises(ValueError, match="none of the 2 runs in .* is finished"):
    subjects([tmp_path], NETWORK)


def test_runs_of_a_sweep_are_replicates(workdir, tmp_path, capsys):
  for name in ("okdph-seed42", "okdph-seed43", "base-seed43"):
    (tmp_path / name).symlink_to(workdir)
  command = ["noise", f"--workdir={tmp_path}/*-seed*", f"--network={NETWORK}", "--images=8"]
  assert analysis.main([*command, "--baseline=dml", f"--out={tmp_path}"]) == 2
  assert "no such entry among base, okdph" in capsys.readouterr().err
  readers = "--readers=student_0,student_1"
  assert analysis.main([*command, readers, "--baseline=base", f"--out={tmp_path}"]) == 0
  assert "Paired difference to base" in capsys.readouterr().out
  found = json.loads((tmp_path / "noise.json").read_text())
  assert found["replicates"]["entries"]["okdph"]["runs"] == 2
  assert found["replicates"]["differences"]["okdph"]["σ = 0"]["mean"] == 0
