"""A run directory: its files, its lock, its checkpoints, and its networks without data."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from scipy.special import softmax

from okdph_jax import data
from okdph_jax.experiment.fit import fit
from okdph_jax.main import parse
from okdph_jax.run import Run
from okdph_jax.saved_config import differing
from tests import runs

OLD = {  # as version 0.1.0 wrote it at first: without the options added since
  "seed": 3,
  "epochs": 4,
  "network": "resnet8",
  "data": {"name": "digits", "dir": None},
  "method": {"name": "okdph", "omega": 0.8},
  "wrappers": (),
}
LINE = {
  "step": 2,
  "epoch": 1.0,
  "seconds": 0.5,
  "losses": {"loss": 1.5},
  "accuracy": {"test": {"student_0": 0.5}},
}
OWN = "tests.nets:Small"


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
  line = json.dumps(LINE) + "\n"
  (tmp_path / "metrics.jsonl").write_text(line + line[:9] + "\n" + line)
  with pytest.raises(ValueError, match="line 2: it is not JSON"):
    list(Run(tmp_path).lines)


def test_a_last_line_may_lack_its_newline_and_a_torn_one_is_left_out(tmp_path):
  run, line = Run(tmp_path), json.dumps(LINE)
  for end, whole in (("", 2), (line[:30], 2), ("\n" + line, 3), ("\n" + line[:-1], 2)):
    (tmp_path / "metrics.jsonl").write_text(
      f"{line}\n{line}" + ("\n" + end.strip() if end else "")
    )
    assert len(run.lines) == whole
    run.append(LINE)
    assert run.lines == [LINE] * (whole + 1)


MISSHAPEN = ["[]", "3", "null", "{}", '"x"', "[" * 100_000, "\0", '{"a"', "1e400", ""]


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
def test_json_of_another_shape_is_refused_in_one_line(name, trained, tmp_path):
  run, config = copied(trained[0].run, tmp_path / "run"), trained[1]
  file, whole = run.path / name, (trained[0].run.path / name).read_text()
  texts = [text for text in MISSHAPEN if text or name != "metrics.jsonl"]
  if name == "metrics.jsonl":
    texts = [text + "\n" for text in texts]
    (run.path / "result.json").unlink()
  for key in (
    '"config": {',
    '"data": {',
    '"method": {',
    '"accuracy": ',
    '"step": ',
    '"single": ',
  ):
    texts += [whole.replace(key, f'"x": 1, {key[:-1]}[7], "y": {{', 1)] if key in whole else []
    texts += [whole.replace(key, f'{key.partition(":")[0][:-1]}s":{key.partition(":")[2]}')]
  for text in texts:
    if text == whole:
      continue
    file.write_text(text)
    with pytest.raises(ValueError, match=name) as error:
      _ = run.lines, run.finished, run.config
      fit(config, run.path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(file))


def test_without_any_file_there_is_nothing(tmp_path):
  assert Run(tmp_path).lines == []
  assert Run(tmp_path).config is None and Run(tmp_path).finished is None
  assert Run(tmp_path).record is None
  assert Run(tmp_path).result is None


def test_config_comes_back_and_only_what_matters_differs(tmp_path):
  Run(tmp_path).write_record(OLD, {"jax": "0.10"})
  old = Run(tmp_path).record
  assert old["environment"] == {"jax": "0.10"}
  assert differing(old["config"], OLD) == []  # () became []
  assert differing(OLD, OLD | {"data": OLD["data"] | {"seed": 42}}) == []
  assert differing(OLD, OLD | {"data": OLD["data"] | {"seed": 7}}) == ["data.seed: 42 -> 7"]
  teaches, silent = (
    OLD | {"method": OLD["method"] | {"hybrid_teaches": x}} for x in (True, False)
  )
  assert differing(OLD, teaches) == []
  assert differing(OLD, silent) == ["method.hybrid_teaches: true -> false"]
  new = OLD | {
    "data": {"name": "digits", "dir": "/elsewhere"},
    "checkpoint_every_minutes": 1.0,
    "method": {"name": "okdph", "omega": 0.3, "gamma": 1.0},
  }
  assert differing(old["config"], new) == [
    "method.gamma: absent -> 1.0",
    "method.omega: 0.8 -> 0.3",
  ]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
  Run(tmp_path).write_result({"seed": 1})
  with pytest.raises(ValueError):
    Run(tmp_path).write_result({"seed": float("nan")})
  with pytest.raises(TypeError):
    Run(tmp_path).write_result({"seed": object()})
  assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
  assert json.loads((tmp_path / "result.json").read_text()) == {"seed": 1}


def test_importing_it_needs_neither_jax_nor_tensorflow():
  code = "import sys, okdph_jax.run, okdph_jax\n"
  code += "print({'jax', 'tensorflow', 'clu'} & {*sys.modules})"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(the Result of a finished run of OKDPH with a validation split, its config)."""
  folder = tmp_path_factory.mktemp("run")
  path = runs.arrays(folder / "data.npz")
  with np.load(path) as arrays:
    arrays = dict(arrays)
  np.savez(path, **arrays, class_names=["ant", "bee", "cat"])
  options = (*runs.options(path), "--config.data.validation=8", "--config.snapshots=1")
  config, *_ = parse(["--config=configs/digits.py", *options, "--workdir=unused"])
  return fit(config, folder / "run"), config


def copied(run, folder):
  return Run(shutil.copytree(run.path, folder, symlinks=True))


def test_a_network_is_loaded_without_its_data(trained, tmp_path, caplog):
  result, config = trained
  dataset = data.load(config)
  images, labels = dataset.test.images, dataset.test.labels
  run = copied(result.run, tmp_path / "moved")
  for reader in runs.SINGLE:
    network = run.network(reader, "last", OWN)
    logits = network(images)
    assert logits.shape == (16, 3) and logits.dtype == np.float32
    line = run.lines[-1]
    assert (logits.argmax(-1) == labels).mean() == line["accuracy"]["test"][reader]
    nll = -np.log(softmax(logits, -1)[np.arange(16), labels]).mean()
    assert nll == pytest.approx(line["cross_entropy"]["test"][reader], rel=1e-4)
  np.testing.assert_allclose(network.probabilities(images), softmax(logits, -1), rtol=1e-5)
  assert network.predict(images) == [("ant", "bee", "cat")[k] for k in logits.argmax(-1)]
  assert str(run.path) in repr(network) and "step 4 (last)" in repr(network)
  assert not caplog.records  # Orbax would warn that it only reads


def test_validation_chooses_the_checkpoint_and_the_reader(trained):
  result, _ = trained

  def validated(line):
    return max(line["accuracy"]["validation"][reader] for reader in runs.SINGLE)

  best = max(result.run.lines, key=validated)
  network = result.run.network(network=OWN)
  assert f"step {best['step']} (best-validation)" in network.origin
  reader = network.origin.split()[0]
  assert best["accuracy"]["validation"][reader] == validated(best)
  with pytest.raises(ValueError, match="best-test: its best was chosen on validation"):
    result.run.network(which="best-test", network=OWN)
  with pytest.raises(ValueError, match="no single network 'fused'"):
    result.run.network("fused", network=OWN)


def test_odd_numbers_of_images_do_not_compile_again(trained, monkeypatch):
  monkeypatch.setattr("okdph_jax.trained_network.LARGEST_BATCH", 8)
  network = trained[0].run.network(network=OWN)
  images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
  whole = network(images)
  for count in (0, 3, 4, 5, 7, 8, 11, 12, 31):
    np.testing.assert_allclose(network(images[:count]), whole[:count], atol=1e-5)
  assert network._compiled._cache_size() == 2  # batches of 4 and 8


def test_other_images_are_refused_in_one_line(trained):
  network = trained[0].run.network(network=OWN)
  for wrong in (np.zeros((2, 8, 8, 1), np.float32), np.zeros((8, 8, 1), np.uint8)):
    with pytest.raises(ValueError, match=r"must be uint8 \[B, 8, 8, 1\]") as error:
      network(wrong)
    assert "\n" not in str(error.value)


def rewrite(path, change):
  found = json.loads(path.read_text())
  change(found)
  path.write_text(json.dumps(found))


def test_code_that_a_run_names_is_not_imported_unless_you_name_it(
  trained, tmp_path, monkeypatch
):
  run = copied(trained[0].run, tmp_path / "foreign")
  rewrite(run.path / "config.json", lambda found: found["config"].update(network="trap:Net"))
  (tmp_path / "trap.py").write_text("raise SystemExit('code of the run was run')")
  monkeypatch.syspath_prepend(tmp_path)
  for other in (None, OWN):
    with pytest.raises(
      ValueError, match="user-defined network, trap:Net, .* only if you name it too"
    ):
      run.network(network=other)


def test_the_same_call_again_gives_the_same_result_and_reads_no_data(
  trained, monkeypatch, capsys
):
  result, config = trained
  monkeypatch.setattr(data, "load", None)
  before = {p: p.stat().st_mtime_ns for p in result.run.path.rglob("*")}
  again = fit(config, result.run.path)
  assert "is finished" in capsys.readouterr().out
  assert (again.numbers, again.readers, again.best_single) == tuple(
    (result.numbers, result.readers, result.best_single)
  )
  assert before == {p: p.stat().st_mtime_ns for p in result.run.path.rglob("*")}


def test_a_snapshot_has_the_statistics_of_its_evaluation(tmp_path):
  options = (*runs.options(runs.arrays(tmp_path / "data.npz")), "--config.snapshots=1")
  wrappers = "--config.wrappers=({'name':'reestimate'},)"
  config, *_ = parse(["--config=configs/digits.py", *options, wrappers, "--workdir=unused"])
  run = fit(config, tmp_path / "run").run
  with ocp.StandardCheckpointer() as checkpointer:
    snapshot = checkpointer.restore(run.snapshots[4].absolute())
  memory = run.learner("last").memory
  jax.tree.map(np.testing.assert_array_equal, snapshot["memory"], memory)


def test_snapshots_know_their_steps(trained, tmp_path):
  run = trained[0].run
  assert list(run.snapshots) == [0, 2, 4]
  old = copied(run, tmp_path / "run")  # earlier versions named them by epoch, and had none of 0
  shutil.rmtree(old.path / "snapshots" / "step_0")
  for step in (2, 4):
    (old.path / "snapshots" / f"step_{step}").rename(old.path / "snapshots" / str(step // 2))
  assert old.snapshots == {s: old.path / "snapshots" / str(s // 2) for s in (2, 4)}


def test_a_run_of_an_earlier_version_opens_and_goes_on(trained, tmp_path, capsys):
  """Its config has none of the options added since, and there are no class names or links."""
  result, config = trained

  def older(config):
    for name in ("network_options", "init_from", "teacher_network"):
      del config[name]

  old = copied(result.run, tmp_path / "old")
  rewrite(old.path / "config.json", lambda found: older(found["config"]))
  rewrite(old.path / "config.json", lambda found: found.pop("class_names"))
  rewrite(old.path / "config.json", lambda found: found["config"].pop("test_view"))
  rewrite(old.path / "result.json", lambda found: older(found["config"]))
  for link in ("latest", "best"):
    (old.path / link).unlink()

  network = old.network("hybrid", "last", OWN)
  assert network.class_names == ("0", "1", "2") and network.test_view == "plain"
  assert fit(config, old.path).numbers["readers"] == result.readers  # finished
  old.reopen()
  assert fit(config, old.path).readers == result.readers  # resumed
  assert "resuming from step" in capsys.readouterr().out
  assert (old.path / "latest").exists() and old.class_names == ("ant", "bee", "cat")


def test_plain_orbax_reads_the_links(trained):
  """The three lines of docs/run-directory.md."""
  run = trained[0].run
  page = Path("docs/run-directory.md").read_text()
  lines = page.partition("```python\n")[2].partition("```")[0]
  assert len([line for line in lines.splitlines() if line]) == 3 and "/best" in lines
  for which, name in (("last", "latest"), ("best-validation", "best")):
    code = lines.replace("/home/me/runs/digits/best", str(run.path.absolute() / name))
    found = {}
    exec(code, found)
    ours = run.learner(which).params["students"]
    jax.tree.map(np.testing.assert_array_equal, found["students"], ours)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(found["students"]))


HOLDER = """
import sys, time
from okdph_jax.run import Run
with Run(sys.argv[1]).locked():
  print("held", flush=True)
  time.sleep(600)
"""


def test_a_second_writer_is_refused_and_a_killed_one_bars_nobody(tmp_path):
  command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
    assert holder.stdout.readline() == "held\n"
    said = rf"process {holder.pid} on {os.uname().nodename} is writing to .*run; wait"
    with pytest.raises(ValueError, match=said) as error:
      with Run(tmp_path / "run").locked():
        pass
    assert "\n" not in str(error.value)
    holder.send_signal(signal.SIGKILL)
  assert (tmp_path / "run" / "lock").exists()
  with Run(tmp_path / "run").locked():
    with pytest.raises(ValueError, match=f"process {os.getpid()} on "):
      with Run(tmp_path / "run").locked():  # nor twice in one process
        pass
  assert not (tmp_path / "run").exists()  # nothing was written


def test_a_refused_config_leaves_no_folder(tmp_path, trained):
  config = trained[1].copy_and_resolve_references()
  config.network = "resnet33"
  with pytest.raises(ValueError, match="resnet33"):
    fit(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_single_view_equals_as_many_as_there_are_networks():
  assert not differing({"views": ["a", "a"]}, {"views": ("a",)})
  assert differing({"views": ["a", "b"]}, {"views": ("a",)})
