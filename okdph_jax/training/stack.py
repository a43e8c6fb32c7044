"""Runs that differ in their seeds alone, as one program: their states in one stacked tree."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from okdph_jax.core import Batch
from okdph_jax.methods.protocol import Metrics
from okdph_jax.training.step import State

# All runs are at the same step: what `lax.cond` decides by it stays a condition.
AXES: Any = State(step=None, learner=0, opt_state=0, sums=0)  # type: ignore[arg-type]


def over_runs(
  step: Callable[..., tuple[State, Metrics]],
) -> Callable[..., tuple[State, Metrics]]:
  """`step(arguments, state, batch, key)` of one run as a step of S runs.

  It takes a stacked state, a batch for each run and keys [S]; metrics are [S].
  """
  mapped = jax.vmap(step, (None, AXES, 0, 0), (AXES, 0))

  def together(given, state, batches: tuple[Batch, ...], keys):
    batch = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    return mapped(given, state, batch, keys)

  return together


class Stack(NamedTuple):
  """How the states of runs become one, and apart again; a single one stays as it is."""

  join: Callable[[Sequence[State]], State]
  split: Callable[[State], list[State]]

  @classmethod
  def of(cls, runs: int, place: Sharding) -> "Stack":
    """For so many runs, whose states lie at `place`."""
    if runs == 1:
      return cls(lambda states: states[0], lambda state: [state])

    def join(states):
      return jax.tree.map(lambda *x: jnp.stack(x), *states).replace(step=states[0].step)

    def split(state):
      apart = state.replace(step=jnp.broadcast_to(state.step, (runs,)))
      return [jax.tree.map(lambda x, i=i: x[i], apart) for i in range(runs)]

    return cls(jax.jit(join, out_shardings=place), jax.jit(split, out_shardings=place))
