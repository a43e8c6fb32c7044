"""The picture of what each network sees."""

import numpy as np
import pytest
from PIL import Image

from okdph_jax.cli import views
from okdph_jax.data.split import several
from okdph_jax.report import plots
from tests import runs


@pytest.fixture
def drawn(tmp_path, monkeypatch, capsys):
  """Draws a config: (columns, rows) of the picture, which is on disk."""
  draw, calls = plots.views, []

  def recorded(columns, rows, out):
    calls.append((columns, rows))
    draw(columns, rows, out)

  monkeypatch.setattr(plots, "views", recorded)

  def drawn(*options):
    out = tmp_path / "new" / "views.png"
    assert views.main([*options, f"--out={out}"]) == 0, capsys.readouterr().err
    assert Image.open(out).width > 100
    return calls.pop()

  return drawn


@pytest.mark.parametrize(
  "method, names",
  [
    ("okdph", ["student_0", "student_1", "hybrid"]),
    ("dml", ["student_0", "student_1"]),
    ("mean_teacher", ["student_0", "teacher"]),
    ("one", ["every network"]),
    ("kd", ["student_0"]),  # its teacher need not be there
  ],
)
def test_a_column_says_which_network_sees_it(drawn, tmp_path, method, names):
  options = runs.options(runs.arrays(tmp_path / "data.npz"))
  options = [o for o in options if "network" not in o or method != "one"]  # branches need ours
  columns, rows = drawn(f"--config=digits:{method}", *options, "--config.views=('plain',)")
  assert [name for name, _, _ in columns] == ["original", *names]
  assert all(text for _, text, _ in columns[1:])
  assert rows == ["0", "0", "0", "1", "1", "1", "2", "2"]
  assert {images.shape for _, _, images in columns} == {(8, 8, 8, 1)}


def test_streamed_images_show_the_crops_that_each_network_sees(drawn, tmp_path):
  rng = np.random.default_rng(0)
  for split in ("train", "test"):
    for name in "abc":
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(4):
        pixels = rng.integers(0, 255, (20, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
  columns, rows = drawn(
    "--config=digits:okdph",
    *("--config.data.name=folder", f"--config.data.dir={tmp_path}"),
    *("--config.data.image_size=8", "--config.data.memory_limit=1"),
    *("--config.network=tests.nets:Small", "--config.views=('plain',)"),
  )
  assert set(rows) == {"a", "b", "c"}
  original, *seen = (images for _, _, images in columns)
  assert len(seen) == 3 and original.shape == (8, 8, 8, 3)
  assert np.abs(seen[0] - seen[1]).max() > 0.1 < np.abs(seen[0] - original).max()


def test_several_takes_one_of_each_class_and_then_again():
  assert several([0, 0, 0, 1, 1, 2], 4) == [0, 1, 3, 5]
  assert several([2, 1, 0], 5) == [2, 1, 0]
  assert several(np.repeat(np.arange(100), 3), 3) == [0, 150, 297]  # spread over the classes
