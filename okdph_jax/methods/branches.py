"""Methods of N branches on a shared stem: one, okddip, ffl and pcl use these functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from okdph_jax.core import Learner, Outputs, Terms
from okdph_jax.losses import accuracy
from okdph_jax.methods.protocol import Context, Logits, Method, unstack
from okdph_jax.nn.students import each, run, stack, start

Forwarded = tuple[Float[Array, "V B h w c"], Outputs]  # stem's maps, branches' [N, B, ...]


def branches(
  context: Context,
  students: int,
  name: str,
  head: nn.Module,
  criterion: Callable[..., Terms],
  *,
  ensembles: Callable[..., Logits],
  named: Callable[..., dict[str, Any]] = unstack,
) -> Method:
  """A method of N independently initialised branches on the stem's map of one view.

  head: a Linen module, `head((maps [1, B, h, w, c], outputs [N, B, ...]), train) -> logits`,
    whose variables are `shared` under `name`.
  criterion: `criterion(logits [N, B, K], head_logits, label [B], step) -> Terms`.
  ensembles: `ensembles(logits, head_logits) -> {reader: logits}`. named: see `readers`.
  """
  net = check_net(context.net)

  def init(key, views):
    return init_branches(net, students, name, head, key, views[0])

  def losses(learner, views, step, key):
    forwarded, learner = forward(net, learner, views.image, key, train=True)
    head_logits, learner = run_shared(head, name, learner, forwarded, key, train=True)
    logits = forwarded[1].logits
    metrics = {"accuracy": accuracy(logits, views.label).mean()}
    return criterion(logits, head_logits, views.label, step), (learner, metrics)

  def combined(learner, image):
    forwarded, learner = forward(net, learner, image[None])
    return ensembles(forwarded[1].logits, run_shared(head, name, learner, forwarded)[0])

  return Method(
    views=1,
    init=init,
    losses=losses,
    **readers(net, lambda learner: {"student": learner}, named),
    ensembles=combined,
  )


def readers(
  net: Any,
  learners: Callable[[Learner], dict[str, Learner]],
  named: Callable[..., dict[str, Any]] = unstack,
) -> dict:
  """The fields `networks` and `predict` of a `Method` of branches; the stem runs once for all.

  learners: `learners(learner) -> {name: a learner with a stem and branches}`.
  named: `named(stack, name) -> {reader: entry}`, by default "name_0", "name_1", ...
  """

  def networks(learner):
    whole = {}
    for name, part in learners(learner).items():
      stem = part.variables("shared", "stem")
      for reader, branch in named(part.students, name).items():
        whole[reader] = {kind: {"stem": stem[kind], "branch": branch[kind]} for kind in branch}
    return whole

  def predict(learner, image):
    logits = {}
    for name, part in learners(learner).items():
      logits |= named(forward(net, part, image[None])[0][1].logits, name)
    return logits

  return {"networks": networks, "predict": predict}


def check_net(net: nn.Module) -> Any:
  """Returns `net`, or raises ValueError, in one line, if it lacks a stem or a branch."""
  if hasattr(net, "stem") and hasattr(net, "branch"):
    return net
  raise ValueError(
    "methods of branches need a network with a stem and a branch, and "
    f"{type(net).__name__} lacks .stem or .branch; add both (see okdph_jax.models.Net), or "
    "choose a method of whole networks"
  )


def init_branches(
  net: Any,
  n: int,
  name: str,
  head: nn.Module,
  key: Key[Array, ""],
  image: Float[Array, "B H W C"],
) -> Learner:
  """A learner with n independently initialised branches, and a stem and a head as `shared`."""
  keys = jax.random.split(key, n + 2)
  stem = start(net.stem, keys[n], image)
  mapped, _ = jax.eval_shape(lambda: run(net.stem, stem, image))
  students = stack(net.branch, keys[:n], mapped)
  learner = Learner(
    params={"students": students["params"], "shared": {"stem": stem["params"]}},
    stats={"students": students["batch_stats"], "shared": {"stem": stem["batch_stats"]}},
    memory={},
  )
  forwarded, _ = jax.eval_shape(lambda: forward(net, learner, image[None]))
  variables = start(head, keys[n + 1], forwarded)
  learner.params["shared"][name] = variables["params"]
  learner.stats["shared"][name] = variables["batch_stats"]
  return learner


def forward(
  net: Any,
  learner: Learner,
  images: Float[Array, "V B H W C"],
  key: Key[Array, ""] | None = None,
  *,
  train: bool = False,
) -> tuple[Forwarded, Learner]:
  """((maps [V, B, h, w, c], outputs [N, B, ...]), the learner with new batch statistics).

  With V = 1 all branches receive the same map, with V = N branch m receives that of view m. The
  stem updates its batch statistics with one view after the other.
  """
  maps = []
  for image in images:
    mapped, learner = run_shared(net.stem, "stem", learner, image, key, train=train)
    maps.append(mapped)
  maps = jnp.stack(maps)
  n = jax.tree.leaves(learner.params["students"])[0].shape[0]
  inputs = jnp.broadcast_to(maps, (n, *maps.shape[1:]))
  outputs, stats = each(net.branch, learner.students, inputs, key, train=train)
  return (maps, outputs), learner.with_stats(students=stats)


def run_shared(
  module: nn.Module,
  name: str,
  learner: Learner,
  x: Any,
  key: Key[Array, ""] | None = None,
  *,
  train: bool = False,
) -> tuple[Any, Learner]:
  """Runs a module with the variables `shared[name]`: (output, learner with new statistics)."""
  y, stats = run(module, learner.variables("shared", name), x, key, train=train)
  return y, learner.with_stats(shared=learner.stats["shared"] | {name: stats})
