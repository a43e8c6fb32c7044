"""Methods of N whole networks: base, dml, kdcl and okdph are built from these functions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from okdph_jax.core import Learner, Terms
from okdph_jax.losses import accuracy
from okdph_jax.methods.protocol import (
  Context,
  Logits,
  Method,
  NetworksFn,
  run_networks,
  unstack,
)
from okdph_jax.nn.students import each, shared_input, stack


def peers(
  context: Context, students: int, criterion: Callable[..., Terms], *, same_init: bool = False
) -> Method:
  """A method of N whole networks, each with a view of its own.

  `criterion(logits [N, B, K], label [B], step) -> Terms`, summed over the students. same_init:
  whether all networks start as the first one.
  """
  net = context.net

  def init(key, views):
    keys = jax.random.split(key, students)
    if same_init:
      keys = jnp.stack([keys[0]] * students)  # also OKDPH's, with the same seed
    return init_networks(net, keys, views)

  def losses(learner, views, step, key):
    logits, stats = each(net, learner.students, views.image, key, train=True)
    metrics = {"accuracy": accuracy(logits, views.label).mean()}
    terms = criterion(logits, views.label, step)
    return terms, (learner.with_stats(students=stats), metrics)

  return Method(
    views=students,
    init=init,
    losses=losses,
    **readers(net),
    independent=True,
  )


def readers(net: nn.Module, others: NetworksFn = lambda learner: {}) -> dict:
  """The fields `networks`, `predict` and `ensembles` of a `Method` of whole networks.

  The students run as one stack, the networks of `others` one by one. The ensemble is the mean
  of the students' logits.
  """
  run_others = run_networks(net, others)

  def networks(learner):
    return unstack(learner.students) | others(learner)

  def predict(learner, image):
    return unstack(students_logits(net, learner, image)) | run_others(learner, image)

  def ensembles(learner, image):
    return mean_of(students_logits(net, learner, image))

  return {"networks": networks, "predict": predict, "ensembles": ensembles}


def init_networks(
  net: nn.Module, keys: Key[Array, " N"], views: Float[Array, "V B H W C"]
) -> Learner:
  """A learner with one network per key; equal keys make equal networks."""
  variables = stack(net, keys, views[0])
  return Learner(
    params={"students": variables["params"], "shared": {}},
    stats={"students": variables["batch_stats"], "shared": {}},
    memory={},
  )


def students_logits(
  net: nn.Module, learner: Learner, image: Float[Array, "B H W C"]
) -> Float[Array, "N B K"]:
  """The logits of every student on the same images."""
  n = jax.tree.leaves(learner.params["students"])[0].shape[0]
  return each(net, learner.students, shared_input(image, n))[0]


def mean_of(logits: Float[Array, "N B K"]) -> Logits:
  """{"ensemble": the mean of the students' logits}; {} for a single student."""
  return {"ensemble": jnp.mean(logits, 0)} if len(logits) > 1 else {}
