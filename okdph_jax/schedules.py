"""Learning rates, ramps and decay rates as functions of the step."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from okdph_jax.core import Number, is_traced
from okdph_jax.durations import REFERENCE_EPOCHS, steps

Step = Int[Array, ""] | int


def milestone(when: float | str, *, epochs: Number, epoch_steps: int) -> Step:
  """The step of a milestone.

  when: a number of epochs of a run of 300 epochs, scaled to a run of `epochs`; or a duration in
  words, "40 epochs", which is not scaled.
  """
  if isinstance(when, str):
    return steps(when, epoch_steps)
  scaled = when * epochs / REFERENCE_EPOCHS
  whole = jnp.round(scaled).astype(jnp.int32) if is_traced(scaled) else round(scaled)
  return whole * epoch_steps


def milestones(
  whens: Iterable[float | str], *, epochs: int, epoch_steps: int
) -> tuple[Step, ...]:
  """Milestones as steps; ValueError if they are not in ascending order."""
  at = tuple(milestone(when, epochs=epochs, epoch_steps=epoch_steps) for when in whens)
  if sorted(at) != list(at):
    raise ValueError(f"milestones {tuple(whens)} are not in ascending order; sort them")
  return at


def multistep(learning_rate: Number, milestones: Sequence[Step]) -> optax.Schedule:
  """`learning_rate`, multiplied by 0.1 at each milestone (a step)."""

  def schedule(step):
    rate = jnp.asarray(learning_rate)
    for start in milestones:  # in a very short run two of them can be the same step
      rate = jnp.where(step < start, rate, 0.1 * rate)
    return rate

  return schedule


def held(schedule: optax.Schedule, last: int) -> optax.Schedule:
  """`schedule`, constant from step `last` on."""
  return lambda step: schedule(jnp.minimum(step, last))


def ramp(
  step: Step, *, epochs: Number, epoch_steps: int, length: float = 80
) -> Float[Array, ""]:
  """exp(-5 (1 - min(e, L) / L)^2) at epoch e, counted from 0 (Laine & Aila, arXiv:1610.02242).

  Constant within an epoch. `length` is L for a run of 300 epochs; it scales with `epochs`.
  """
  scaled = jnp.maximum(length * epochs / REFERENCE_EPOCHS, 1e-9)
  done = jnp.minimum(step // epoch_steps / scaled, 1.0)
  return jnp.exp(-5.0 * (1.0 - done) ** 2)


def average_decay(step: Step, limit: float) -> Float[Array, ""]:
  """min(1 - 1 / (t + 1), limit), the decay of a moving average after t = 1, 2, ... steps.

  It begins as the mean of all weights so far (Tarvainen & Valpola, arXiv:1703.01780).
  """
  return jnp.minimum(1.0 - 1.0 / (step + 1.0), limit)
