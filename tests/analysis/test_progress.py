"""What a log shows of an analysis that runs for long."""

import itertools

from okdph_jax.analysis import progress


def test_a_log_has_a_line_every_thirty_seconds_and_the_table_a_speed(capsys, monkeypatch):
  clock = itertools.chain([0.0], [10.0, 20.0, 40.0, 45.0])  # begins, then four updates
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
  monkeypatch.setattr(progress.Progress, "_spoke", 0.0)
  with progress.Progress("sweep", 8, "point") as bar:
    for _ in range(3):
      bar.update()
    bar.update(2)
  assert capsys.readouterr().err == "sweep: 3 of 8 points, 0:01:07 left\n"
  assert bar.speed() == "0.114 points per second"  # four after the first, in 35 seconds


def test_of_a_single_part_the_speed_includes_compilation(monkeypatch):
  clock = iter([0.0, 4.0])
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
  with progress.Progress("sweep", 1, "point") as bar:
    bar.update()
  assert bar.speed() == "0.25 points per second, compilation included"
