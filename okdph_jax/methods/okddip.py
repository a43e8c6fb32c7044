"""OKDDip: peers learn from attention-weighted targets, a group leader from their mean."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.lax import stop_gradient

from okdph_jax.core import Terms
from okdph_jax.losses import cross_entropy, kl
from okdph_jax.methods.branches import branches
from okdph_jax.methods.peers import mean_of
from okdph_jax.methods.protocol import (
  Context,
  Method,
  check_positive,
  check_students,
  unstack,
)
from okdph_jax.schedules import ramp


class Attention(nn.Module):
  """The targets of the peers, t_i = sum_j A_ij z_j: [N-1, B, K]. The leader is left out."""

  @nn.compact
  def __call__(self, forwarded, train):
    del train
    _, outputs = forwarded
    feature, logits = outputs.feature[:-1], outputs.logits[:-1]  # [N-1, B, F], [N-1, B, K]
    default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's
    width = max(feature.shape[-1] // 8, 1)
    project = partial(nn.Dense, width, use_bias=False, kernel_init=default)
    query, key = project(name="query")(feature), project(name="key")(feature)  # [N-1, B, F/8]
    attention = nn.softmax(jnp.einsum("ibf,jbf->bij", query, key))  # not divided by sqrt(F / 8)
    return jnp.einsum("bij,jbk->ibk", attention, logits)


def okddip(
  context: Context, *, students: int = 3, temperature: float = 3.0, detach_mean: bool = False
) -> Method:
  """OKD with Diverse Peers (Chen et al., AAAI 2020, arXiv:1912.00350).

      L = sum_m CE(z_m, y)
          + ramp(e; 80) [sum_{i < N} KL_T(t_i -> z_i) + KL_T(mean_{i < N} z_i -> z_N)]

  The last of the N branches is the leader, the others are peers. Query and key are trained
  through the targets t_i, so these are not detached. Neither is the leader's target in the
  official code and in the release; `detach_mean=True` detaches it.

  `students` includes the leader; the official code has 4. The release has 2, i.e. one peer,
  whose attention weight is 1 and whose target is itself: the method is then a leader distilled
  from one peer.
  """
  check_students("okddip", students)
  check_positive("okddip", temperature=temperature)

  def criterion(logits, targets, label, step):
    peers, leader = logits[:-1], logits[-1]
    mean = stop_gradient(peers.mean(0)) if detach_mean else peers.mean(0)
    distill = kl(peers, targets, temperature).sum() + kl(leader, mean, temperature)
    weight = ramp(step, epochs=context.epochs, epoch_steps=context.epoch_steps)
    return Terms(cross_entropy(logits, label).sum(), weight * distill)

  def named(stack, name):
    readers = unstack(stack, name)
    readers["leader"] = readers.pop(f"{name}_{students - 1}")
    return readers

  def ensembles(logits, targets):
    del targets
    return mean_of(logits[:-1])

  return branches(
    context, students, "attention", Attention(), criterion, named=named, ensembles=ensembles
  )
