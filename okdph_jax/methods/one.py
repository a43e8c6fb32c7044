"""ONE: a gate mixes the branches' logits into a teacher of all branches."""

import jax.numpy as jnp
from flax import linen as nn
from jax.lax import stop_gradient

from okdph_jax.core import Terms
from okdph_jax.losses import cross_entropy, kl
from okdph_jax.methods.branches import branches
from okdph_jax.methods.peers import mean_of
from okdph_jax.methods.protocol import Context, Method, check_positive, check_students
from okdph_jax.models.layers import linear, norm
from okdph_jax.schedules import ramp


class Gate(nn.Module):
  """Mixed logits [B, K]: the stem's map gives a weight for each example and branch."""

  @nn.compact
  def __call__(self, forwarded, train):
    maps, outputs = forwarded
    logits = outputs.logits  # [N, B, K]
    weights = linear(maps[0].mean((1, 2)), len(logits))
    weights = nn.softmax(nn.relu(norm(train)(weights)))  # [B, N]
    return jnp.einsum("bn,nbk->bk", weights, logits)


def one(
  context: Context, *, students: int = 3, temperature: float = 3.0, detach_target: bool = True
) -> Method:
  """On-the-fly Native Ensemble (Lan, Zhu and Gong, NeurIPS 2018, arXiv:1806.04606).

      z_e = sum_m g_m z_m
      L = sum_m CE(z_m, y) + CE(z_e, y) + ramp(e; 80) sum_m KL_T(sg[z_e] -> z_m)

  g are the gate's weights. The official code detaches the target z_e; in OKDPH's release it
  also passes gradients to gate and branches (`detach_target=False`), and there are 2 branches.
  The release evaluates the mean of the branches' logits (reader "ensemble"), not z_e ("gated").
  """
  check_students("one", students)
  check_positive("one", temperature=temperature)

  def criterion(logits, gated, label, step):
    target = stop_gradient(gated) if detach_target else gated
    task_loss = cross_entropy(logits, label).sum() + cross_entropy(gated, label)
    weight = ramp(step, epochs=context.epochs, epoch_steps=context.epoch_steps)
    return Terms(task_loss, weight * kl(logits, target, temperature).sum())

  def ensembles(logits, gated):
    return mean_of(logits) | {"gated": gated}

  return branches(context, students, "gate", Gate(), criterion, ensembles=ensembles)
