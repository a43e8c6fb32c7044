"""Durations, milestones and ramps against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from okdph_jax import durations, schedules


def multistep(rate, whens, **run):
  return schedules.multistep(rate, schedules.milestones(whens, **run))


@pytest.mark.parametrize(
  "text, want", [("5 steps", 5), ("1 step", 1), ("1 epoch", 391), (" 3  epochs ", 1173)]
)
def test_durations_in_steps(text, want):
  assert durations.steps(text, 391) == want


@pytest.mark.parametrize("text", ["5", "0 steps", "-1 epoch", "1.5 epochs", "5 batches", ""])
def test_other_words_are_no_duration(text):
  with pytest.raises(ValueError, match="is not a duration; write '5 steps' or '1 epoch'"):
    durations.parse(text)


def test_the_papers_learning_rates():
  """The rate falls, at 150 and 225 of 300, 391 steps each."""
  rate = multistep(0.1, (150, 225), epochs=300, epoch_steps=391)
  epochs = {0: 0.1, 149: 0.1, 150: 0.01, 224: 0.01, 225: 0.001, 299: 0.001}
  for epoch, want in epochs.items():
    for step in (epoch * 391, epoch * 391 + 390):
      np.testing.assert_allclose(rate(step), want, rtol=1e-6)


def test_milestones_scale_with_the_run_unless_in_words():
  rate = multistep(1.0, (150, 225), epochs=20, epoch_steps=3)
  np.testing.assert_allclose(
    [rate(29), rate(30), rate(44), rate(45)], [1, 0.1, 0.1, 0.01], rtol=1e-5
  )
  rate = multistep(1.0, ("4 epochs", "20 steps"), epochs=20, epoch_steps=3)
  np.testing.assert_allclose(
    [rate(11), rate(12), rate(19), rate(20)], [1, 0.1, 0.1, 0.01], rtol=1e-5
  )


def test_two_milestones_on_one_step_both_count():
  rate = multistep(1.0, (150, 225), epochs=1, epoch_steps=10)  # both round to one place
  np.testing.assert_allclose([rate(0), rate(9), rate(10)], [0.1, 0.1, 0.01], rtol=1e-5)


def test_milestones_out_of_order_are_refused():
  with pytest.raises(ValueError, match="ascending"):
    multistep(0.1, (225, 150), epochs=300, epoch_steps=1)


def test_the_ramp():
  """exp(-5 (1 - e/80)^2): 0.0067, 0.287, 1; constant within an epoch; scaled with the run."""

  def at(epoch, offset=0, epochs=300):
    return schedules.ramp(epoch * 391 + offset, epochs=epochs, epoch_steps=391)

  np.testing.assert_allclose(
    [at(0), at(40), at(80), at(299)], [np.exp(-5), np.exp(-1.25), 1, 1], rtol=1e-5
  )
  assert at(7) == at(7, 390) != at(8)
  np.testing.assert_allclose(at(20, epochs=150), at(40), rtol=1e-5)


def test_a_held_rate_stays_what_it_was_at_a_step():
  rate = schedules.held(multistep(0.1, (150,), epochs=300, epoch_steps=1), 160)
  assert [float(rate(step)) for step in (149, 150, 160, 10_000)] == pytest.approx(
    [0.1, 0.01, 0.01, 0.01]
  )
  assert float(schedules.held(lambda step: step, 160)(161)) == 160


def test_averages_are_plain_at_first():
  decays = [float(schedules.average_decay(t, 0.9)) for t in (1, 2, 4, 9, 100)]
  assert decays == pytest.approx([1 / 2, 2 / 3, 4 / 5, 0.9, 0.9])


def test_milestones_of_a_traced_number_of_epochs_are_the_same():
  @jax.jit
  def traced(epochs):
    return schedules.milestone(150, epochs=epochs, epoch_steps=7)

  for epochs in (5, 60, 299, 301):
    whole = traced(jnp.float32(epochs))
    assert whole.dtype == jnp.int32
    assert int(whole) == schedules.milestone(150, epochs=epochs, epoch_steps=7)
