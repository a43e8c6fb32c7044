"""Trains S runs that differ only in their seeds as one program, with stacked states."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from okdph_jax.core import Batch
from okdph_jax.methods.protocol import Metrics
from okdph_jax.training.step import State

# The step is not mapped: all runs are at the same one, and `lax.cond` on it stays a condition.
AXES: Any = State(step=None, learner=0, opt_state=0, sums=0)  # type: ignore[arg-type]


def over_runs(
  step: Callable[..., tuple[State, Metrics]],
) -> Callable[..., tuple[State, Metrics]]:
  """Turns `step(arguments, state, batch, key)` of one run into a step of S runs.

  It takes a stacked state, a tuple of S batches, and keys [S]; its metrics are [S].
  """
  mapped = jax.vmap(step, (None, AXES, 0, 0), (AXES, 0))

  def together(given, state, batches: tuple[Batch, ...], keys):
    batch = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    return mapped(given, state, batch, keys)

  return together


class Stack(NamedTuple):
  """Joins the states of S runs into one, and splits it; the state of a single run is as is."""

  join: Callable[[Sequence[State]], State]
  split: Callable[[State], list[State]]

  @classmethod
  def of(cls, runs: int, place: Sharding) -> "Stack":
    """The `Stack` of so many runs. place: the sharding of their states."""
    if runs == 1:
      return cls(lambda states: states[0], lambda state: [state])

    def join(states):
      return jax.tree.map(lambda *x: jnp.stack(x), *states).replace(step=states[0].step)

    def split(state):
      apart = state.replace(step=jnp.broadcast_to(state.step, (runs,)))
      return [jax.tree.map(lambda x, i=i: x[i], apart) for i in range(runs)]

    return cls(jax.jit(join, out_shardings=place), jax.jit(split, out_shardings=place))
