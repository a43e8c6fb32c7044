"""Your own method.

A method is a function that builds a tuple of pure functions from a `Context` (the network, the
number of classes, the length of the run) and keyword-only options. For methods that train whole
networks, `peers` provides everything but the loss. This one is DML, with one change: a student
learns from another one only on images that the other one classifies correctly.

    python examples/own_method.py

trains it on the digits. Every keyword is an option of the config, checked like those of the
package, and wrappers such as SAM can be put around it. For `okdph train --config=FILE.py`,
import this module in your config file; to load such a run elsewhere, import it first.
"""

import jax.numpy as jnp
from jax.lax import stop_gradient

import okdph_jax
from okdph_jax.core import Terms
from okdph_jax.losses import cross_entropy, kl
from okdph_jax.methods import METHODS
from okdph_jax.methods.peers import peers

EPOCHS = 20


def careful_dml(context, *, students=2, weight=1.0):
  """DML with a teacher's wrong answers left out.

  L_m = CE(z_m, y) + weight / (M - 1) sum_{j != m} KL_1(sg[z_j] -> z_m), where j is right
  """

  def criterion(logits, label, step):  # [N, B, K], [B]
    right = logits.argmax(-1) == label  # [N, B]: whose answers teach
    # A teacher that is the student itself has a divergence of 0.
    teacher = jnp.where(right[None, ..., None], logits, logits[:, None])  # [N, N, B, K]
    pairs = kl(logits[:, None], stop_gradient(teacher))  # [N, N], student by teacher
    return Terms(cross_entropy(logits, label).sum(), weight * pairs.sum() / (students - 1))

  return peers(context, students, criterion)


METHODS["careful_dml"] = careful_dml

if __name__ == "__main__":
  config = okdph_jax.load_config("digits:dml,resnet8", [("method.name", "careful_dml")])
  config.method.weight = 0.5
  config.epochs = EPOCHS
  config.wrappers = ({"name": "ema", "decay": 0.99},)
  result = okdph_jax.fit(config, "runs/careful_dml")
  print(result.best_single)
