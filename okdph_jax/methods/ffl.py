"""FFL: a head on the fused feature maps of all branches teaches them, and they teach it."""

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
  check_nonnegative,
  check_positive,
  check_students,
  plain_optimizer,
)
from okdph_jax.models.layers import conv, linear, norm
from okdph_jax.schedules import ramp


class Fusion(nn.Module):
  """Logits [B, K] from the branches' last feature maps, concatenated to [B, h, w, N F]."""

  @nn.compact
  def __call__(self, forwarded, train):
    _, outputs = forwarded
    n, *_, width = outputs.map.shape
    x = jnp.concatenate(list(outputs.map), -1)
    x = nn.relu(norm(train)(conv(n * width, 3, groups=n * width)(x)))
    x = nn.relu(norm(train)(conv(width, 1)(x)))
    return linear(x.mean((1, 2)), outputs.logits.shape[-1])


def ffl(
  context: Context,
  *,
  students: int = 2,
  temperature: float = 3.0,
  fusion_weight_decay: float = 1e-5,
) -> Method:
  """Feature Fusion Learning (Kim et al., ICPR 2020, arXiv:1904.09058).

      L = sum_m CE(z_m, y) + CE(z_f, y)
          + ramp(e; 80) [sum_m KL_T(sg[z_f] -> z_m) + KL_T(sg[mean_m z_m] -> z_f)]

  z_f are the logits of the fusion head; their gradient also reaches branches and stem, through
  the maps. The head has its own weight decay, as in the official code; OKDPH's release uses the
  network's, 5e-4. (`config.weight_decay=0` turns off both.) Its learning rate follows the
  schedule; in the release it stays constant, which is not reproduced.
  """
  check_students("ffl", students)
  check_positive("ffl", temperature=temperature)
  check_nonnegative("ffl", fusion_weight_decay=fusion_weight_decay)

  def criterion(logits, fused, label, step):
    distill = kl(logits, stop_gradient(fused), temperature).sum()
    distill += kl(fused, stop_gradient(logits.mean(0)), temperature)
    weight = ramp(step, epochs=context.epochs, epoch_steps=context.epoch_steps)
    task_loss = cross_entropy(logits, label).sum() + cross_entropy(fused, label)
    return Terms(task_loss, weight * distill)

  def optimizer(schedule, *, weight_decay, **rest):
    own = fusion_weight_decay * (weight_decay > 0)
    rates = {"students": weight_decay, "shared": {"stem": weight_decay, "fusion": own}}
    return plain_optimizer(schedule, weight_decay=rates, **rest)

  def ensembles(logits, fused):
    return mean_of(logits) | {"fused": fused}

  method = branches(context, students, "fusion", Fusion(), criterion, ensembles=ensembles)
  return method._replace(optimizer=optimizer)
