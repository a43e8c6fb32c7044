"""Reestimate: re-estimated batch statistics for networks that are averages of weights."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from okdph_jax.methods.protocol import Context, Method, run_networks
from okdph_jax.methods.statistics import over_a_pass, with_mean_statistics
from okdph_jax.nn.students import run


def reestimate(method: Method, context: Context, *, readers: tuple[str, ...] = ()) -> Method:
  """Adds a reader "reestimated_NAME" for each network NAME that is an average of weights.

  The batch statistics of a hybrid or an averaged network are averages too, and differ from the
  statistics of what the averaged weights compute (Izmailov et al., UAI 2018, arXiv:1803.05407).
  Before each evaluation they are re-estimated as means over the training images, one pass, with
  the last view, on which OKDPH trains the hybrid. Training is unchanged.

  readers: their names; by default all single networks that gradient descent does not train:
  "hybrid", "center", "teacher", "mean_0", "ema_student_0", ...
  """
  net = context.net

  def averages(learner):
    networks = method.networks(learner)
    chosen = readers or tuple(name for name in networks if not name.startswith(OTHERS))
    missing = [name for name in chosen if name not in networks]
    if missing or not chosen:
      asked = f"no single network {missing[0]!r}" if missing else "no average of networks"
      raise ValueError(
        f"reestimate: there is {asked}; remove it from config.wrappers, or set its readers to "
        f"some of {', '.join(networks)}"
      )
    return {name: networks[name] for name in chosen}

  def init(key, views):
    learner = method.init(key, views)
    start = {name: v["batch_stats"] for name, v in averages(learner).items()}
    return learner.with_memory_of("reestimate", jax.tree.map(jnp.copy, start))

  def reestimated(learner):
    stats: dict[str, PyTree] = learner.memory["reestimate"]  # of the readers that `init` chose
    return {
      f"reestimated_{name}": network | {"batch_stats": stats[name]}
      for name, network in method.networks(learner).items()
      if name in stats
    }

  def update_statistics(learner, views, seen):
    """The learner with a batch added to the means over the `seen` images before it."""
    key, image = jax.random.fold_in(jax.random.key(0), seen), views.image[-1]

    def forward():
      return {
        name.removeprefix("reestimated_"): run(net, network, image, key, train=True)[1]
        for name, network in reestimated(learner).items()
      }

    stats = with_mean_statistics(forward, seen, len(views.label))
    return learner.with_memory(reestimate=stats)

  estimated = over_a_pass(update_statistics)

  def before_eval(learner, batches):
    return estimated(method.before_eval(learner, batches), batches)

  def networks(learner):
    return method.networks(learner) | reestimated(learner)

  run_reestimated = run_networks(net, reestimated)

  def predict(learner, image):
    return method.predict(learner, image) | run_reestimated(learner, image)

  return method._replace(
    init=init,
    before_eval=before_eval,
    networks=networks,
    predict=predict,
    in_memory=(*method.in_memory, "reestimated_"),  # the statistics of these very weights
  )


# Prefixes of readers that are trained, or whose statistics are re-estimated already.
OTHERS = ("student_", "leader", "swa_student_", "swa_leader")
