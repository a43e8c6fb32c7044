"""What a run says of its pace: steps beside a compiler say nothing of the time left."""

import math

import pytest

from okdph_jax.training import progress, timer


@pytest.fixture
def wait(monkeypatch):
  """Moves the clock that the run looks at."""
  now = [100.0]
  monkeypatch.setattr(timer.time, "monotonic", lambda: now[0])

  def wait(seconds):
    now[0] += seconds

  return wait


def test_the_time_of_a_step_is_that_of_recent_ones(wait):
  clock = timer.StepTimer()
  assert math.isnan(clock.step_seconds())

  def steps(looks, count, seconds):
    for _ in range(looks):
      for _ in range(count):
        clock.count(images=10)
        wait(seconds)
      clock.tick()

  steps(3, count=1, seconds=1.0)
  assert clock.step_seconds() == 1 and clock.look_every() == 1
  clock.forget()  # nothing compiles any more
  steps(4, count=2, seconds=0.25)
  wait(50)  # an evaluation
  clock.start()
  steps(1, count=2, seconds=0.25)
  assert clock.step_seconds() == pytest.approx(0.25) and clock.look_every() == 4
  assert clock.images_per_second() == pytest.approx(40)
  assert clock.seconds() == pytest.approx(3 + 2 + 50 + 0.5)
  steps(timer.RECENT, count=1, seconds=0.1)
  assert clock.step_seconds() == pytest.approx(0.1)


def test_no_time_left_is_told_while_programs_compile(wait, capsys):
  numbers = {"loss": 1.0, "accuracy": 0.5, "images_per_second": 10.0}
  with progress.Progress(10, 110) as shown:
    wait(40)
    shown.update(20, **numbers)
    shown.pace_from(20)
    wait(20)
    shown.update(40, **numbers)  # too soon for a line
    wait(20)
    shown.update(60, **numbers)
  first, second = capsys.readouterr().out.splitlines()
  assert first.startswith("step 20/110: loss 1.0000") and "left" not in first
  assert second.endswith("0:00:50 left")
