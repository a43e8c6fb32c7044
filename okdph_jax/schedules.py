"""Learning rates and ramp-ups, as functions of the step."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from okdph_jax.core import Number, is_traced
from okdph_jax.durations import REFERENCE_EPOCHS, steps

Step = Int[Array, ""] | int


def milestone(when: float | str, *, epochs: Number, epoch_steps: int) -> Step:
  """As a step: epochs of a run of 300, which scale with the run, or a duration in words."""
  if isinstance(when, str):
    return steps(when, epoch_steps)
  scaled = when * epochs / REFERENCE_EPOCHS
  whole = jnp.round(scaled).astype(jnp.int32) if is_traced(scaled) else round(scaled)
  return whole * epoch_steps


def milestones(
  whens: Iterable[float | str], *, epochs: int, epoch_steps: int
) -> tuple[Step, ...]:
  """Milestones as steps; ValueError where they are not in ascending order."""
  at = tuple(milestone(when, epochs=epochs, epoch_steps=epoch_steps) for when in whens)
  if sorted(at) != list(at):
    raise ValueError(f"milestones {tuple(whens)} are not in ascending order; sort them")
  return at


def multistep(
  learning_rate: Number, milestones: Sequence[Step], factor: float = 0.1
) -> optax.Schedule:
  """The rate times `factor` from each milestone, a step, on."""

  def schedule(step):
    rate = jnp.asarray(learning_rate)
    for milestone in milestones:  # two milestones of a very short run can be one step
      rate = jnp.where(step < milestone, rate, factor * rate)
    return rate

  return schedule


def held(schedule: optax.Schedule, last: int) -> optax.Schedule:
  """The schedule up to step `last`, and its rate there ever after."""
  return lambda step: schedule(jnp.minimum(step, last))


def ramp(
  step: Step, *, epochs: Number, epoch_steps: int, length: float = 80
) -> Float[Array, ""]:
  """exp(-5 (1 - min(e, L) / L)^2) of the epoch e (Laine & Aila, arXiv:1610.02242).

  `length` L is in epochs of a run of 300 and scales with the run; constant within an epoch.
  """
  scaled = jnp.maximum(length * epochs / REFERENCE_EPOCHS, 1e-9)
  done = jnp.minimum(step // epoch_steps / scaled, 1.0)
  return jnp.exp(-5.0 * (1.0 - done) ** 2)


def average_decay(step: Step, limit: float) -> Float[Array, ""]:
  """min(1 - 1 / (t + 1), limit): a plain average of the first weights, then an exponential one.

  t counts the run's steps, 1 after the first (Tarvainen & Valpola, arXiv:1703.01780).
  """
  return jnp.minimum(1.0 - 1.0 / (step + 1.0), limit)
