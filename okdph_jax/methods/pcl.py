"""PCL: peers with separate views, taught by their ensemble and by averages of each other."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.lax import stop_gradient
from jaxtyping import PyTree

from okdph_jax.core import Learner, Terms
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.methods.branches import (
  check_net,
  forward,
  init_branches,
  readers,
  run_shared,
)
from okdph_jax.methods.peers import mean_of
from okdph_jax.methods.protocol import (
  Context,
  Method,
  check_fraction,
  check_positive,
  check_students,
)
from okdph_jax.models.layers import linear
from okdph_jax.schedules import average_decay, ramp


class Ensemble(nn.Module):
  """A classifier on the concatenated features of all peers: [B, N F] -> [B, K]."""

  @nn.compact
  def __call__(self, forwarded, train):
    del train
    _, outputs = forwarded
    return linear(jnp.concatenate(list(outputs.feature), -1), outputs.logits.shape[-1])


def pcl(
  context: Context, *, students: int = 3, temperature: float = 3.0, decay: float = 0.999
) -> Method:
  """Peer Collaborative Learning (Wu and Gong, AAAI 2021, arXiv:2006.04147).

      L = CE(z_en, y) + sum_m [CE(z_m, y) + w KL_T(sg[z_en] -> z_m)
                               + w / (M - 1) sum_{j != m} KL_T(sg[z'_j] -> z_m)]
      w = ramp(e; 80)
      theta' <- phi theta' + (1 - phi) theta,  phi = min(1 - 1 / (t + 1), decay)

  Peer m is branch m on the stem's map of view m. z' are the logits of the mean network theta',
  which starts as a copy and has the same views; only parameters are averaged, its batch
  statistics are its own. Its branches "mean_0", ... are the paper's result; "concatenated" is
  z_en.

  In OKDPH's release t stays 0, so theta' = theta (`decay=0.0`), and there are 2 branches. Its
  ramp is nearly 0 until epoch 80, which is not reproduced.
  """
  check_students("pcl", students)
  check_positive("pcl", temperature=temperature)
  check_fraction("pcl", decay=decay)
  net, head, others = check_net(context.net), Ensemble(), 1 - jnp.eye(students)

  def init(key, views):
    learner = init_branches(net, students, "ensemble", head, key, views[0])
    mean = {"params": peers(learner.params), "stats": peers(learner.stats)}
    return learner.with_memory(mean=jax.tree.map(jnp.copy, mean))

  def losses(learner, views, step, key):
    label, mean_key = views.label, jax.random.fold_in(key, students)
    forwarded, learner = forward(net, learner, views.image, key, train=True)
    ensemble, learner = run_shared(head, "ensemble", learner, forwarded, key, train=True)
    mean_forwarded, mean = forward(
      net, mean_network(learner), views.image, mean_key, train=True
    )
    logits = forwarded[1].logits  # [N, B, K]
    averaged = stop_gradient(mean_forwarded[1].logits)  # [N, B, K]

    pairs = kl(logits[:, None], averaged, temperature)  # [N, N], peer by teacher
    distill = kl(logits, stop_gradient(ensemble), temperature).sum()
    distill += (others * pairs).sum() / (students - 1)
    task_loss = cross_entropy(ensemble, label) + cross_entropy(logits, label).sum()
    weight = ramp(step, epochs=context.epochs, epoch_steps=context.epoch_steps)

    memory = learner.memory["mean"] | {"stats": stop_gradient(mean.stats)}
    learner = learner.with_memory(mean=memory)
    metrics = {"accuracy": accuracy(logits, label).mean()}
    return Terms(task_loss, weight * distill), (learner, metrics)

  def after_step(learner, step, key):
    del key
    mean, rate = learner.memory["mean"], 1 - average_decay(step, decay)
    params = optax.incremental_update(peers(learner.params), mean["params"], rate)
    return learner.with_memory(mean=mean | {"params": params})

  def ensembles(learner, image):
    forwarded, learner = forward(net, learner, image[None])
    concatenated, _ = run_shared(head, "ensemble", learner, forwarded)
    return mean_of(forwarded[1].logits) | {"concatenated": concatenated}

  return Method(
    views=students,
    init=init,
    losses=losses,
    **readers(net, lambda learner: {"mean": mean_network(learner), "student": learner}),
    ensembles=ensembles,
    after_step=after_step,
    in_memory=("mean_",),
  )


def peers(part: dict[str, PyTree]) -> dict[str, PyTree]:
  """Stem and branches of `params` or `stats`; the ensemble head is not averaged."""
  return part | {"shared": {"stem": part["shared"]["stem"]}}


def mean_network(learner: Learner) -> Learner:
  """The averaged peers as a learner."""
  return Learner(**learner.memory["mean"], memory={})
