"""DML: students that learn from one another's predictions."""

from jax.lax import stop_gradient

from okdph_jax.core import Terms
from okdph_jax.losses import cross_entropy, kl
from okdph_jax.methods.peers import peers
from okdph_jax.methods.protocol import Context, Method, check_students


def dml(context: Context, *, students: int = 2, same_init: bool = False) -> Method:
  """Deep Mutual Learning (Zhang et al., CVPR 2018, arXiv:1706.00384).

      L_m = CE(z_m, y) + 1 / (M - 1) sum_{j != m} KL_1(sg[z_j] -> z_m)

  As in OKDPH's release, all students are updated at once after one forward pass, and each
  student has its own view. The original updates them in turn, on the same images. With
  `same_init` the students are equal at the start, as in OKDPH.
  """
  check_students("dml", students)

  def criterion(logits, label, step):  # [N, B, K], [B]
    del step
    pairs = kl(logits[:, None], stop_gradient(logits))  # [N, N], zero on the diagonal
    return Terms(cross_entropy(logits, label).sum(), pairs.sum() / (students - 1))

  return peers(context, students, criterion, same_init=same_init)
