"""Export of a run, and prediction by what it wrote: files, errors, commands, the page."""

import csv
import hashlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from safetensors import numpy as safetensors

import okdph_jax
from okdph_jax import cli
from okdph_jax.cli.train import main as train
from okdph_jax.export import folder as folders
from okdph_jax.export.folder import export
from okdph_jax.export.formats import FORMATS
from okdph_jax.export.model import load
from okdph_jax.export.serve import server
from tests import runs

OWN = "tests.nets:Small"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("export")
  options = runs.options(runs.arrays(folder / "data.npz"))
  assert train(["--config=digits", *options, f"--workdir={folder / 'run'}"]) == 0
  return folder / "run"


@pytest.fixture(scope="module")
def exported(run):
  assert cli.dispatch(["export", f"--workdir={run}", f"--network={OWN}", "--int8"]) == 0
  return run / "export"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A folder with three pictures, the last in a folder of its own, and what is none."""
  folder = tmp_path_factory.mktemp("pictures")
  random = np.random.default_rng(0)
  (folder / "more").mkdir()
  for name, size in {"a.png": (8, 8), "b.png": (20, 31), "more/c.png": (16, 9)}.items():
    Image.fromarray(random.integers(0, 256, size, np.uint8)).save(folder / name)
  (folder / "broken.png").write_text("no picture")
  (folder / "notes.txt").write_text("not taken")
  return folder


@pytest.fixture(scope="module")
def images(run):
  with np.load(run.parent / "data.npz") as arrays:
    return arrays["test_images"]


# The folder.


def test_model_json_says_what_the_files_are(run, exported, images):
  about = json.loads((exported / "model.json").read_text())
  last = okdph_jax.Run(run).lines[-1]
  assert about["name"] == f"student_0 of the {OWN}, step {last['step']} (last)"
  assert about["accuracy"] == {"test": last["accuracy"]["test"]["student_0"]}
  assert about["chosen_on"] is None and about["epoch"] == 2
  assert about["classes"] == ["0", "1", "2"]
  assert about["input"]["shape"] == ["batch", 8, 8, 1]
  normal = okdph_jax.Run(run).config["data"]["normalisation"]
  assert [about["input"]["normalisation"][x] for x in ("mean", "std")] == [*normal.values()]
  assert about["compared"]["images"] == len(images)
  assert set(about["files"]) == {"safetensors", *FORMATS}
  for entry in about["files"].values():
    content = (exported / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert len(content) == entry["bytes"]
  assert {path.name for path in exported.iterdir()} == {
    *(entry["file"] for entry in about["files"].values()),
    "model.json",
    "predict.py",
  }


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_gives_the_checkpoint_s_classes(run, exported, images, name):
  network = okdph_jax.load(run, network=OWN)
  model, entry = (
    load(exported, name),
    json.loads((exported / "model.json").read_text())["files"][name],
  )
  far = np.abs(model.logits(images) - network(images)).max()
  assert far == pytest.approx(entry["max_difference"], rel=1e-3, abs=1e-6)
  same = model.logits(images).argmax(-1) == network(images).argmax(-1)
  assert entry["agreement"] == same.mean()
  np.testing.assert_allclose(model.probabilities(images).sum(-1), 1, rtol=1e-5)


def test_the_weights_are_the_checkpoint_s(run, exported):
  weights = safetensors.load_file(exported / "model.safetensors")
  variables = okdph_jax.load(run, network=OWN).variables
  assert set(weights) == set(folders.named_weights(variables))
  kernel = variables["params"]["Conv_0"]["kernel"]
  np.testing.assert_array_equal(weights["params/Conv_0/kernel"], kernel)


def test_a_file_that_differs_is_refused_and_nothing_is_left(
  run, exported, tmp_path, monkeypatch
):
  def wrong(network, path, calibration):
    variables = dict(network.variables)
    variables["params"] = {**variables["params"], "Dense_0": {
      name: x * 1.01 for name, x in variables["params"]["Dense_0"].items()
    }}  # fmt: skip
    network = type(network)(**(vars(network) | {"variables": variables}))
    FORMATS["tflite"].write(network, path, calibration)

  monkeypatch.setitem(folders.FORMATS, "onnx", FORMATS["tflite"]._replace(write=wrong))
  out, before = tmp_path / "out", (exported / "model.json").read_text()
  for folder in (out, exported):
    with pytest.raises(ValueError, match="differs from the checkpoint by up to .* in a logit"):
      export(run, folder, network=OWN, formats=["stablehlo", "onnx"])
  assert list(tmp_path.iterdir()) == []
  assert (exported / "model.json").read_text() == before
  assert not [path for path in run.iterdir() if ".new" in path.name or ".old" in path.name]


def test_what_a_converter_raises_is_said_in_a_line(run, tmp_path, capsys, monkeypatch):
  def breaks(network, path, calibration):
    raise RuntimeError("a converter's\nown words")

  monkeypatch.setitem(folders.FORMATS, "onnx", FORMATS["onnx"]._replace(write=breaks))
  command = ["export", f"--workdir={run}", f"--network={OWN}", f"--out={tmp_path / 'out'}"]
  assert cli.dispatch([*command, "--formats=onnx"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "model.onnx cannot be made: a converter's own words" in line
  assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_and_other_folders_are_not(run, tmp_path, capsys):
  command = ["export", f"--workdir={run}", f"--network={OWN}", f"--out={tmp_path / 'out'}"]
  assert cli.dispatch([*command, "--formats=onnx"]) == 0
  assert cli.dispatch([*command, "--formats=stablehlo", "--reader=hybrid", "--images=3"]) == 0
  about = json.loads((tmp_path / "out" / "model.json").read_text())
  assert set(about["files"]) == {"safetensors", "stablehlo"} and about["reader"] == "hybrid"
  assert not (tmp_path / "out" / "predict.py").exists() and about["compared"]["images"] == 3
  shutil.move(tmp_path / "out" / "model.json", tmp_path / "elsewhere.json")
  capsys.readouterr()
  assert cli.dispatch(command) == 2
  assert "is not empty and not an exported network" in capsys.readouterr().err
  assert (tmp_path / "out" / "model.stablehlo").exists()


@pytest.mark.parametrize(
  "options, says",
  [
    (["--formats=onxn"], "there is no format 'onxn'"),
    (["--formats=stablehlo", "--int8"], "int8 is for onnx and tflite"),
    (["--reader=student_9"], "no single network 'student_9'"),
    (["--images=0"], "--images=0"),
    (["--data.dir=nowhere.npz"], "nowhere.npz"),
  ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(run, tmp_path, capsys, options, says):
  command = ["export", f"--workdir={run}", f"--network={OWN}", f"--out={tmp_path / 'out'}"]
  assert cli.dispatch([*command, *options]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert says in line and list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(run, tmp_path, monkeypatch):
  absent = FORMATS["onnx"]._replace(packages=("onnx", "not_installed"))
  monkeypatch.setitem(folders.FORMATS, "onnx", absent)
  with pytest.raises(ValueError, match=r"needs not_installed: pip install '\.\[export\]'"):
    export(run, tmp_path / "out", network=OWN)


# Prediction.


def predict(*arguments, capsys, code=0):
  capsys.readouterr()
  assert cli.dispatch(["predict", *map(str, arguments)]) == code
  return capsys.readouterr()


def test_pictures_of_a_folder_and_one_that_is_none(exported, pictures, capsys):
  said = predict(exported, pictures, "--json", "--top=2", capsys=capsys, code=1)
  found = json.loads(said.out)
  assert [os.path.relpath(entry["file"], pictures) for entry in found] == [
    "a.png", "b.png", "more/c.png",
  ]  # fmt: skip
  (line,) = said.err.splitlines()
  assert "broken.png is not a readable image" in line
  image = np.asarray(Image.open(pictures / "a.png"))[None, ..., None]
  row = load(exported).probabilities(image)[0]
  first, second = found[0]["classes"]
  assert first["class"] == str(row.argmax()) and first["probability"] > second["probability"]
  assert first["probability"] == pytest.approx(row.max(), abs=1e-5)


def test_every_format_and_the_run_agree(run, exported, pictures, capsys):
  chosen = [*(("--format", name) for name in FORMATS)]
  tables = [
    predict(exported, *x, pictures / "b.png", "--csv", capsys=capsys).out for x in chosen
  ]
  own = predict(run, f"--network={OWN}", "--csv", pictures / "b.png", capsys=capsys).out
  (expected,) = csv.DictReader(io.StringIO(own))
  assert list(expected)[:3] == ["file", "class_1", "probability_1"]
  for table in tables:
    (row,) = csv.DictReader(io.StringIO(table))
    assert row["class_1"] == expected["class_1"]
    assert float(row["probability_1"]) == pytest.approx(
      float(expected["probability_1"]), abs=0.05
    )


def test_a_damaged_file_is_refused(exported, pictures, tmp_path, capsys):
  shutil.copytree(exported, tmp_path / "copy")
  content = bytearray((tmp_path / "copy" / "model.onnx").read_bytes())
  content[len(content) // 2] ^= 1
  (tmp_path / "copy" / "model.onnx").write_bytes(content)
  said = predict(tmp_path / "copy", pictures, capsys=capsys, code=2).err
  assert "model.onnx is not the file that was exported" in said
  (tmp_path / "copy" / "model.json").write_text("{")
  assert "does not describe" in predict(tmp_path / "copy", pictures, capsys=capsys, code=2).err


@pytest.mark.parametrize(
  "arguments, says",
  [
    ([], "MODEL"),
    (["EXPORT"], "name pictures or a folder"),
    (["EXPORT", "no.png"], "no file or folder no.png"),
    (["EXPORT", "EMPTY"], "no pictures in"),
    (["EXPORT", "PICTURES", "--format=tf"], "has no format 'tf' (there are onnx, stablehlo"),
    (["EXPORT", "PICTURES", "--reader=hybrid"], "choose one of a run"),
    (["EXPORT", "PICTURES", "--json", "--csv"], "not allowed with"),
    (["RUN", "PICTURES", "--format=onnx"], "okdph export"),
    (["EMPTY", "PICTURES"], "there is no run in"),
    (["EXPORT", "PICTURES", "--tpo=2"], "did you mean '--top'?"),
  ],
)
def test_what_cannot_be_predicted_is_refused_in_a_line(
  run, exported, pictures, tmp_path, capsys, arguments, says
):
  names = {"EXPORT": exported, "PICTURES": pictures, "RUN": run, "EMPTY": tmp_path}
  arguments = [names.get(word, word) for word in arguments]
  (line,) = predict(*arguments, capsys=capsys, code=2).err.splitlines()
  assert says in line


def test_bench_measures_every_format(exported, monkeypatch, capsys):
  monkeypatch.setattr("okdph_jax.export.bench.SECONDS", 0)
  monkeypatch.setattr("okdph_jax.export.bench.SIZES", (1, 2))
  refused = predict(exported, "--bench", "--reader=hybrid", capsys=capsys, code=2).err
  assert "--bench does not use reader; leave that out" in refused
  lines = predict(exported, "--bench", "--threads=1", capsys=capsys).out.splitlines()
  assert [line.split()[0] for line in lines[-len(FORMATS) :]] == list(FORMATS)


ALONE = """
import sys
sys.path.insert(0, {folder!r})
class OnlyThese:
  def find_spec(self, name, path=None, target=None):
    top = name.partition(".")[0]
    if top in ("jax", "jaxlib", "flax", "okdph_jax", "tensorflow", "onnx", "PIL"):
      raise ImportError(name)
sys.meta_path.insert(0, OnlyThese())
import numpy as np
import predict
np.save({out!r}, predict.probabilities(np.load({images!r})))
"""


def test_onnxruntime_and_numpy_are_enough(exported, images, tmp_path):
  np.save(tmp_path / "images.npy", images)
  paths = {"folder": exported, "out": tmp_path / "out.npy", "images": tmp_path / "images.npy"}
  program = ALONE.format(**{name: str(path) for name, path in paths.items()})
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  probabilities = load(exported).probabilities(images)
  np.testing.assert_allclose(np.load(tmp_path / "out.npy"), probabilities, rtol=1e-5)


def test_the_script_beside_the_model_sees_pictures_as_predict_does(
  exported, pictures, tmp_path, capsys
):
  files = [pictures / "a.png", pictures / "b.png", tmp_path / "logo.png", tmp_path / "deep.png"]
  clear = np.zeros((8, 8, 4), np.uint8)  # black, and visible in one corner only
  clear[:4, :4, 3] = 255
  Image.fromarray(clear).save(files[2])
  deep = np.linspace(0, 65535, 64).reshape(8, 8)
  Image.fromarray(deep.astype(np.uint16)).save(files[3])
  (tmp_path / "notes.txt").write_text("no picture")
  program = [sys.executable, exported / "predict.py", tmp_path / "notes.txt", *files]
  done = subprocess.run(program, capture_output=True, text=True)
  assert done.returncode == 1 and done.stderr.startswith(f"left out: {tmp_path / 'notes.txt'}")
  assert done.stderr.count("\n") == 1
  lines = done.stdout.splitlines()
  found = json.loads(predict(exported, *files, "--json", capsys=capsys).out)
  for line, entry in zip(lines, found, strict=True):
    first = entry["classes"][0]
    assert line.split()[1:3] == [first["class"], f"{first['probability']:.1%}"]


def test_the_script_has_the_pixels_of_predict(exported, pictures, tmp_path):
  random = np.random.default_rng(1)
  files = [pictures / "b.png", tmp_path / "deep.png", tmp_path / "clear.png"]
  Image.fromarray(random.integers(0, 65536, (21, 13), np.uint16)).save(files[1])
  Image.fromarray(random.integers(0, 256, (21, 13, 4), np.uint8)).save(files[2])
  script, model = runpy.run_path(str(exported / "predict.py")), load(exported)
  for side in (8, 9):  # as of data in memory, and streamed
    script["about"]()["input"]["resize"]["shorter_side"] = side
    for path in files:
      expected = model._replace(shorter_side=side).picture(path.name, path)
      np.testing.assert_array_equal(script["pixels"](path), expected, err_msg=path.name)
  Image.fromarray(random.random((8, 8), np.float32)).save(tmp_path / "float.tiff")
  with pytest.raises(ValueError, match="not whole numbers"):
    script["pixels"](tmp_path / "float.tiff")


def test_pictures_of_streamed_data_are_cut_out_of_larger_ones(exported):
  """As their evaluation does: 8 pixels of 9, without the black rim on one side."""
  content = io.BytesIO()
  Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 1)).save(content, "PNG")
  model = load(exported)
  whole, cut = (
    model._replace(shorter_side=side).picture("rim", content.getvalue()) for side in (8, 9)
  )
  assert whole.shape == cut.shape == (8, 8, 1)
  assert cut[-1].mean() > whole[-1].mean() + 20


def test_a_run_on_streamed_data_sees_pictures_as_its_export_does(run, tmp_path):
  copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
  assert load(copy, network=OWN).shorter_side is None
  record = json.loads((copy / "config.json").read_text())
  assert record["streamed"] is False
  (copy / "config.json").write_text(json.dumps(record | {"streamed": True}))
  assert load(copy, network=OWN).shorter_side == round(8 * 256 / 224)


# The page.


@pytest.fixture
def page(exported, browser):
  with server(load(exported), port=0, top=2) as running:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{running.server_address[1]}/")
    yield page
    page.close()
    running.shutdown()
    thread.join()


def test_a_page_shows_the_classes_of_a_picture(page, exported, pictures, capsys):
  found = json.loads(
    predict(exported, pictures / "a.png", "--json", "--top=2", capsys=capsys).out
  )
  page.set_input_files("input", [pictures / "a.png"])
  page.wait_for_selector(".class")
  assert page.inner_text("h2") == "a.png"
  lines = [row.inner_text().split("\n") for row in page.query_selector_all(".class")]
  expected = [(c["class"], f"{100 * c['probability']:.1f} %") for c in found[0]["classes"]]
  assert [(line[0], line[-1]) for line in lines] == expected
  assert "3 classes, images of 8×8 pixels" in page.inner_text("#model")
  page.set_viewport_size({"width": 390, "height": 800})  # a phone needs no sideways scrolling
  assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_picture_is_dropped_and_a_file_that_is_none_is_named(page, pictures):
  content = list((pictures / "b.png").read_bytes())
  page.evaluate(
    """content => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(content)], "dröpped.png", {type: "image/png"}));
      data.items.add(new File(["no"], "broken.png", {type: "image/png"}));
      const options = {dataTransfer: data, bubbles: true, cancelable: true};
      document.querySelector("#drop").dispatchEvent(new DragEvent("drop", options));
    }""",
    content,
  )
  page.wait_for_selector(".error")
  page.wait_for_selector(".class")
  assert [h.inner_text() for h in page.query_selector_all("h2")] == [
    "broken.png",
    "dröpped.png",
  ]
  assert "broken.png is not a readable image" in page.inner_text(".error")
  assert len(page.query_selector_all(".class")) == 2
