"""One stem, many branches, a head that teaches them: one, okddip, ffl and pcl start here."""

import jax
import jax.numpy as jnp

from okdph_jax.core import Learner
from okdph_jax.losses import accuracy
from okdph_jax.methods.protocol import Method, one_by_one
from okdph_jax.nn.students import each, run, stack, start


def branches(context, students, name, head, criterion, *, ensembles, named=one_by_one):
  """N branches from independent starts, all on the stem's map of one view.

  `head((maps [1, B, h, w, c], outputs [N, B, ...]), train) -> logits` is a Linen module,
  kept as `name` under `shared`: it sees the stem's map and the branches' `Outputs`.
  `criterion(logits [N, B, K], taught, label [B], step) -> Terms`, `taught` from the head;
  `named(stack)` and `ensembles(logits, taught)` give the readers.
  """
  net = split(context.net, name)

  def init(key, views):
    return grow(net, students, name, head, key, views[0])

  def losses(learner, views, step, key):
    trunk, learner = forward(net, learner, views.image, key, train=True)
    taught, learner = run_shared(head, name, learner, trunk, key, train=True)
    logits = trunk[1].logits
    metrics = {"accuracy": accuracy(logits, views.label).mean()}
    return criterion(logits, taught, views.label, step), (learner, metrics)

  def singles(learner, image):
    return named(forward(net, learner, image[None])[0][1].logits)

  def combined(learner, image):
    trunk, learner = forward(net, learner, image[None])
    return ensembles(trunk[1].logits, run_shared(head, name, learner, trunk)[0])

  return Method(
    views=1,
    init=init,
    losses=losses,
    predict=singles,
    ensembles=combined,
    networks=lambda learner: grown(learner, named),
  )


def split(net, name):
  """`net` if it has a stem and a branch; a one-line ValueError otherwise."""
  if hasattr(net, "stem") and hasattr(net, "branch"):
    return net
  raise ValueError(
    f"the branches on one stem that {name} needs are not to be found: {type(net).__name__} has "
    "no .stem and .branch; give it both (see okdph_jax.models.Net), or choose a method of "
    "whole networks"
  )


def grow(net, n, name, head, key, image):
  """A learner of n independently started branches, and under `shared` the stem and the head."""
  keys = jax.random.split(key, n + 2)
  stem = start(net.stem, keys[n], image)
  mapped, _ = jax.eval_shape(lambda: run(net.stem, stem, image))
  students = stack(net.branch, keys[:n], mapped)
  learner = Learner(
    params={"students": students["params"], "shared": {"stem": stem["params"]}},
    stats={"students": students["batch_stats"], "shared": {"stem": stem["batch_stats"]}},
    memory={},
  )
  trunk, _ = jax.eval_shape(lambda: forward(net, learner, image[None]))
  top = start(head, keys[n + 1], trunk)
  learner.params["shared"][name] = top["params"]
  learner.stats["shared"][name] = top["batch_stats"]
  return learner


def grown(learner, named=one_by_one):
  """Every branch on the stem, as the variables of one whole network: {reader: variables}."""
  stem = learner.variables("shared", "stem")
  return {
    reader: {kind: {"stem": stem[kind], "branch": branch[kind]} for kind in branch}
    for reader, branch in named(learner.students).items()
  }


def forward(net, learner, images, key=None, *, train=False):
  """((maps [V, B, h, w, c], outputs [N, B, ...]), the learner with its new statistics).

  images: [V, B, H, W, C]. With V = 1 all branches share the stem's map, with V = N branch m
  has that of view m; the stem's batch statistics are those of each view, updated in order.
  """
  maps = []
  for image in images:
    mapped, learner = run_shared(net.stem, "stem", learner, image, key, train=train)
    maps.append(mapped)
  maps = jnp.stack(maps)
  n = jax.tree.leaves(learner.params["students"])[0].shape[0]
  each_own = jnp.broadcast_to(maps, (n, *maps.shape[1:]))
  outputs, stats = each(net.branch, learner.students, each_own, key, train=train)
  return (maps, outputs), learner.replace(stats=learner.stats | {"students": stats})


def run_shared(module, name, learner, x, key=None, *, train=False):
  """Runs the module kept as `name` under `shared`: its output, and the learner afterwards."""
  y, stats = run(module, learner.variables("shared", name), x, key, train=train)
  shared = learner.stats["shared"] | {name: stats}
  return y, learner.replace(stats=learner.stats | {"shared": shared})
