"""The training step, the same for every method, and the state that it updates."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from okdph_jax.core import Batch, Learner, Terms, Views
from okdph_jax.methods.protocol import Method, Metrics


class State(struct.PyTreeNode):
  """The whole state of a run: what a step updates and a checkpoint holds."""

  step: Int[Array, ""]  # steps done
  learner: Learner
  opt_state: PyTree
  sums: Metrics  # metrics summed since the last evaluation, and "steps", their number


Augment = Callable[[Key[Array, ""], Array], Float[Array, "V B H W C"]]  # (key, image)


def train_step(
  method: Method,
  tx: optax.GradientTransformation,
  augment: Augment,
  state: State,
  batch: Batch,
  key: Key[Array, ""],
  *,
  accumulate: int = 1,
) -> tuple[State, Metrics]:
  """The state after one more batch, and the metrics of that batch.

  Jit it with the first three arguments bound and the state donated.

  key: of the run; every random draw is a function of (key, step).
  accumulate: the number of parts that the batch is computed in, see `mean_over_parts`.
  """
  key_views, key_losses, key_after = keys_of(key, state.step)
  with jax.named_scope("views"):
    views = Views(augment(key_views, batch.image), batch.label)
  params = state.learner.params

  def gradient(views, key):
    def objective(params):
      learner = state.learner.replace(params=params)
      terms, (learner, metrics) = method.losses(learner, views, state.step, key)
      return terms, (learner, metrics | loss_metrics(terms))

    return method.gradient(objective, params)

  if accumulate == 1:
    grads, (learner, metrics) = gradient(views, key_losses)
  else:
    grads, learner, metrics = mean_over_parts(
      accumulate, gradient, state.learner, views, key_losses
    )
  with jax.named_scope("update"):
    updates, opt_state = tx.update(grads, state.opt_state, params)
    learner = learner.replace(params=optax.apply_updates(params, updates))
    learner = method.after_step(learner, state.step + 1, key_after)
  return State(state.step + 1, learner, opt_state, added(state.sums, metrics)), metrics


def added(sums: Metrics, metrics: Metrics) -> Metrics:
  """The sums plus the metrics of one more step; `sums` may be empty."""
  # Without the barrier, XLA may fuse a metric's last product with the sum, which rounds once
  # instead of twice.
  metrics = jax.lax.optimization_barrier(metrics)
  return {name: sums.get(name, 0.0) + metrics[name] for name in metrics}


def keys_of(key: Key[Array, ""], step: Any) -> Key[Array, " 3"]:
  """The keys of a step: for the views, the losses, and `after_step`."""
  return jax.random.split(jax.random.fold_in(key, step), 3)


def mean_over_parts(
  count: int,
  gradient: Callable[[Views, Key[Array, ""]], tuple[PyTree, tuple[Learner, Metrics]]],
  learner: Learner,
  views: Views,
  key: Key[Array, ""],
) -> tuple[PyTree, Learner, Metrics]:
  """(gradients, learner, metrics): means over `count` parts of the batch, weighted by size.

  The parts are computed one after another. Part i has the images i, i + count, ..., so that a
  batch sharded over devices needs no communication, and its own key. Each part starts from the
  same `learner`; the changes of batch statistics and memory are averaged as well. Batch
  normalisation uses the statistics of each part. If `count` does not divide the batch, the
  first parts have one image more, taken from the start of the batch.
  """

  def part(views, key):
    grads, (after, metrics) = gradient(views, key)
    moved = jax.tree.map(
      lambda a, b: a - b if _is_float(b) else None,
      without_params(after),
      without_params(learner),
    )
    return grads, moved, metrics

  def add(total, item):
    views, key = item
    return jax.tree.map(lambda t, x: t + len(views.label) * x, total, part(views, key)), None

  size, total, start = len(views.label), None, 0
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
  for parts, each in ((size % count, size // count + 1), (count - size % count, size // count)):
    if not parts or not each:
      continue
    images, first = slice(start, start + parts * each), count - parts if start else 0
    block = Views(
      _every(parts, views.image[:, images], 1), _every(parts, views.label[images], 0)
    )
    if total is None:
      shapes = jax.eval_shape(part, jax.tree.map(lambda x: x[0], block), key)
      total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # XLA:CPU runs the body of a loop many times slower than unrolled code.
    unroll = parts if jax.default_backend() == "cpu" else 1
    total, _ = jax.lax.scan(add, total, (block, keys[first : first + parts]), unroll=unroll)
    start += parts * each
  grads, moved, metrics = jax.tree.map(lambda x: x / size, total)
  after = jax.tree.map(
    lambda a, b: a if b is None else a + b,
    without_params(learner),
    moved,
    is_leaf=lambda x: x is None,
  )
  return grads, after, metrics


def without_params(learner: Learner) -> Learner:
  """The learner's batch statistics and memory, which gradient descent does not update."""
  return learner.replace(params={})


def _is_float(x):
  return jnp.issubdtype(x.dtype, jnp.floating)


def _every(parts, x, axis):
  """[..., B, ...] -> [parts, ..., B / parts, ...], part i with every `parts`-th entry."""
  x = x.reshape(*x.shape[:axis], -1, parts, *x.shape[axis + 1 :])
  return jnp.moveaxis(x, axis + 1, 0)


def loss_metrics(terms: Terms) -> Metrics:
  """The loss and its terms. "steps" is 1: sums of metrics divided by its sum are means."""
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
  """The state before the first step. Jit it, so that it is created on the devices.

  batch: only its shapes are used.
  """
  state = without_sums(method, tx, augment, batch, key)
  step = functools.partial(train_step, method, tx, augment)
  return state.replace(sums=zero_sums(step, state, batch, key))


def without_sums(
  method: Method,
  tx: optax.GradientTransformation,
  augment: Augment,
  batch: Batch,
  key: Key[Array, ""],
) -> State:
  """The initial state with empty sums: their names follow from tracing a step."""
  key_init = jax.random.fold_in(key, 2**31 - 1)  # larger than any step
  views = jax.eval_shape(augment, key, batch.image)
  learner = method.init(key_init, jnp.zeros(views.shape, views.dtype))
  return State(jnp.int32(0), learner, tx.init(learner.params), {})


def zero_sums(
  step: Callable[[State, Batch, Key[Array, ""]], tuple[State, Metrics]],
  state: State,
  batch: Batch,
  key: Key[Array, ""],
) -> Metrics:
  """A zero for each metric of `step(state, batch, key)`."""
  _, metrics = jax.eval_shape(step, state, batch, key)
  return jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
