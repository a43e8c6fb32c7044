"""One descent step of any method, and the state it moves."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from okdph_jax.core import Batch, Learner, Terms, Views
from okdph_jax.methods.protocol import Method, Metrics


class State(struct.PyTreeNode):
  """Everything a run remembers: donate it, checkpoint it, compare it."""

  step: Int[Array, ""]  # steps done
  learner: Learner
  opt_state: PyTree
  sums: Metrics  # summed since the last evaluation, and "steps", how many


Augment = Callable[[Key[Array, ""], Array], Float[Array, "V B H W C"]]  # (key, image)


def train_step(
  method: Method,
  tx: optax.GradientTransformation,
  augment: Augment,
  state: State,
  batch: Batch,
  key: Key[Array, ""],
) -> tuple[State, Metrics]:
  """The state after one more batch, and the metrics of that batch.

  `key` is the run's: every draw is a function of (key, step). Jit it with the first three
  arguments bound and the state donated.
  """
  key_views, key_losses, key_after = jax.random.split(jax.random.fold_in(key, state.step), 3)
  views = Views(augment(key_views, batch.image), batch.label)

  def objective(params):
    learner = state.learner.replace(params=params)
    terms, (learner, metrics) = method.losses(learner, views, state.step, key_losses)
    return terms, (learner, metrics | report(terms))

  params = state.learner.params
  grads, (learner, metrics) = method.gradient(objective, params)
  updates, opt_state = tx.update(grads, state.opt_state, params)
  learner = learner.replace(params=optax.apply_updates(params, updates))
  learner = method.after_step(learner, state.step + 1, key_after)
  sums = {name: state.sums.get(name, 0.0) + metrics[name] for name in metrics}
  return State(state.step + 1, learner, opt_state, sums), metrics


def report(terms: Terms) -> Metrics:
  """The objective by name; "steps" counts, so that sums divided by it are means."""
  total = terms.task + terms.distill
  values = {"loss": total, "task": terms.task, "distill": terms.distill, "steps": 1}
  return {
    name: jnp.asarray(jax.lax.stop_gradient(v), jnp.float32) for name, v in values.items()
  }


def initial_state(
  method: Method,
  tx: optax.GradientTransformation,
  augment: Augment,
  batch: Batch,
  key: Key[Array, ""],
) -> State:
  """The state before the first step; `batch` may be shapes. Jit it, to place it at once."""
  key_init = jax.random.fold_in(key, 2**31 - 1)  # larger than any step
  views = jax.eval_shape(augment, key, batch.image)
  learner = method.init(key_init, jnp.zeros(views.shape, views.dtype))
  state = State(jnp.int32(0), learner, tx.init(learner.params), {})
  step = functools.partial(train_step, method, tx, augment)
  _, metrics = jax.eval_shape(step, state, batch, key)
  return state.replace(sums=jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics))
