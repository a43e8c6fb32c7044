"""What a run says and writes about the machine that its bits depend on."""

from okdph_jax import data
from okdph_jax.experiment import fit
from okdph_jax.experiment.build import build
from okdph_jax.experiment.config import load_config
from okdph_jax.experiment.summary import environment, summary
from okdph_jax.main import parse
from okdph_jax.nn import onednn
from okdph_jax.run import Run
from tests import runs


def test_what_computes_the_convolutions_is_said_and_written(tmp_path):
  options = runs.options(runs.arrays(tmp_path / "data.npz"))
  config, *_ = parse(["--config=configs/digits.py", *options, "--workdir=unused"])
  dataset = data.load(config)
  rows = summary(config, dataset, build(config, dataset)).splitlines()
  (row,) = (row for row in rows if row.startswith("convolutions "))
  assert row.removeprefix("convolutions").strip() == str(onednn.choice())
  assert environment()["convolutions"] == onednn.choice().name


def test_a_resume_with_other_convolutions_says_so(tmp_path, monkeypatch, capsys):
  config, written = load_config("digits").to_dict(), environment()

  def resume():
    fit.same_run(Run(tmp_path), config, None, environment())
    return capsys.readouterr().out

  Run(tmp_path).write_record(config, written)
  assert resume() == ""
  monkeypatch.setattr(onednn, "choice", lambda: onednn.Choice("9.9"))
  assert f"convolutions: {written['convolutions']} -> oneDNN 9.9" in resume()
  del written["convolutions"]  # as earlier versions wrote it: XLA's
  Run(tmp_path).write_record(config, written)
  assert "convolutions: XLA -> oneDNN 9.9" in resume()
