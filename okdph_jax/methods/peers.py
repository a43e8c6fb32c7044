"""Whole networks side by side: base, dml, kdcl and okdph start here."""

import jax
import jax.numpy as jnp

from okdph_jax.core import Learner
from okdph_jax.losses import accuracy
from okdph_jax.methods.protocol import Method, one_by_one
from okdph_jax.nn.students import each, shared_input, stack


def peers(context, students, criterion):
  """N networks, each on its own view, from independent starts.

  `criterion(logits [N, B, K], label [B], step) -> Terms`, summed over the students.
  """
  net = context.net

  def init(key, views):
    return independent(net, jax.random.split(key, students), views)

  def losses(learner, views, step, key):
    logits, stats = each(net, learner.students, views.image, key, train=True)
    metrics = {"accuracy": accuracy(logits, views.label).mean()}
    learner = learner.replace(stats=learner.stats | {"students": stats})
    return criterion(logits, views.label, step), (learner, metrics)

  return Method(
    views=students,
    init=init,
    losses=losses,
    predict=lambda learner, image: one_by_one(students_logits(net, learner, image)),
    ensembles=lambda learner, image: mean_of(students_logits(net, learner, image)),
    independent=True,
  )


def independent(net, keys, views):
  """A learner of one network per key; equal keys make equal networks."""
  variables = stack(net, keys, views[0])
  return Learner(
    params={"students": variables["params"], "shared": {}},
    stats={"students": variables["batch_stats"], "shared": {}},
    memory={},
  )


def students_logits(net, learner, image):
  """Every student's logits on the same images: [N, B, K]."""
  n = jax.tree.leaves(learner.params["students"])[0].shape[0]
  return each(net, learner.students, shared_input(image, n))[0]


def mean_of(logits):
  """The ensemble, the mean of the logits [N, B, K]; none of a single network."""
  return {"ensemble": jnp.mean(logits, 0)} if len(logits) > 1 else {}
