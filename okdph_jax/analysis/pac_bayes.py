"""PAC-Bayes quantities of a network: the KL behind the paper's table, a bound, a noise level.

The paper (supplement of arXiv:2303.14666, Table S5 and Figure S1) names no formula. `kl_table`
is the one we infer from its numbers. No loss enters it: between runs of one network it ranks by
the norm of the weights, and is no evidence of flatness. `sigma_search` is.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PyTree
from scipy import optimize

from okdph_jax.analysis import figures
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.points import (
  as_tree,
  compiled,
  mean_over,
  network_accuracy,
  network_loss,
  perturbed,
)
from okdph_jax.analysis.progress import Progress
from okdph_jax.analysis.replicates import merged
from okdph_jax.analysis.subject import Subject
from okdph_jax.experiment.paper import CIFAR

WARNING = (
  "kl_table grows with the number and the norm of the weights alone: no training loss and no "
  "flatness enters, and it ranks networks of one kind as their weight norm does. "
  "1/sigma^2 measures flatness."
)
VALIDITY = (
  "The bound takes the weights at the start to be independent of the images, and does not "
  "account for the batch statistics."
)
PRIOR_VARIANCE = math.exp(-6)  # lambda: log-std -3
# Table S5 [10^6 nats]: base, dml, kdcl and okdph, on CIFAR-10 and then CIFAR-100.
TABLE_S5 = {
  "resnet32": ((97.78, 97.57, 97.69, 97.26), (103.03, 102.43, 102.66, 101.71)),
  "resnet110": ((239.55, 239.82, 239.34, 238.92), (249.44, 248.63, 248.17, 247.98)),
  "vgg16": ((3051.24, 3051.35, 3047.62, 3043.88), (3089.95, 3088.79, 3078.59, 3068.47)),
  "densenet40_12": ((38.57, 38.34, 38.80, 38.14), (45.19, 43.65, 41.77, 41.46)),
  "wrn20_8": ((1376.46, 1376.83, 1376.24, 1374.61), (1391.57, 1392.68, 1384.58, 1383.76)),
}
PRECISION, SCALE = 100, 0.1  # b and c: priors lambda = c exp(-j / b), j = 1, 2, ...
DELTA = 0.025  # the bound fails with at most this probability
DELTA_MONTE_CARLO = 0.01  # and the estimate of the error of Q with this one


class Bound(NamedTuple):
  """A bound on the error of the random network w ~ Q, valid with probability 1 - 0.035.

  Provided that the prior's mean, the weights at the start, does not depend on the images; with
  `init_from` it may. The bound does not account for the batch statistics, which were estimated
  on the images and are outside Q.
  """

  error: float  # the bound
  train_error: float  # of Q, estimated from draws
  kl: float
  prior_variance: float  # lambda


class Sigma(NamedTuple):
  """The largest noise that costs no more than the given training accuracy."""

  sigma: float
  inverse_square: float  # 1 / sigma^2: large means sharp


def kl(params: PyTree, start: PyTree, variance: PyTree, prior_variance: Any) -> Any:
  """KL(N(params, diag variance) || N(start, prior_variance I)) in nats.

      1/2 [sum s / lambda + |w - w0|^2 / lambda - d + d ln lambda - sum ln s]

  `variance`: a tree like `params`. In the arithmetic of its arguments.
  """
  leaves = zip(*map(jax.tree.leaves, (params, start, variance)), strict=True)
  total = 0.0
  for w, w0, s in leaves:
    terms = (s + (w - w0) ** 2) / prior_variance - 1 + jnp.log(prior_variance) - jnp.log(s)
    total += terms.sum() / 2
  return total


def kl_table(params: PyTree, start: PyTree | None = None) -> float:
  """The KL that Table S5 fits: lambda = e^-6 and log-std |w|, s = exp(2 |w|), in float64.

  start: the prior's mean w0; None is zero. About 198.2 per parameter, plus
  402 |w|_1 + 403 |w|_2^2 + 202 |w - w0|_2^2.
  """
  total = 0.0
  leaves = jax.tree.leaves(params)
  starts = jax.tree.leaves(start) if start is not None else [0.0] * len(leaves)
  for w, w0 in zip(leaves, starts, strict=True):
    w, w0 = np.asarray(w, np.float64), np.asarray(w0, np.float64)
    spread = np.exp(2 * np.abs(w)) + (w - w0) ** 2
    terms = spread / PRIOR_VARIANCE - 1 + math.log(PRIOR_VARIANCE) - 2 * np.abs(w)
    total += terms.sum() / 2
  return float(total)


def complexity(kl: Any, prior_variance: Any, m: int) -> Float[Array, ""]:
  """The right-hand side of kl(train error || error) <= ... for m images (Dziugaite and Roy,
  UAI 2017, arXiv:1703.11008), a union over the priors lambda = c exp(-j / b) included."""
  union = 2 * jnp.log(PRECISION * jnp.log(SCALE / prior_variance))
  return (kl + union + math.log(math.pi**2 * m / (6 * DELTA))) / (m - 1)


def inverse_kl(q: float, c: float) -> float:
  """The largest p with KL(Bernoulli(q) || Bernoulli(p)) <= c."""
  if c <= 0 or q >= 1:
    return q

  def excess(p):
    first = q * math.log(q / p) if q > 0 else 0.0
    return first + (1 - q) * (math.log1p(-q) - math.log1p(-p)) - c

  highest = 1 - 1e-12
  if excess(highest) < 0:
    return highest
  root: Any = optimize.brentq(excess, max(q, 1e-300), highest)
  return root


def dziugaite_roy(
  loss: Callable[..., Any],
  error: Callable[..., Any],
  params: PyTree,
  start: PyTree,
  m: int,
  *,
  key: Key[Array, ""],
  batches: PyTree,
  steps: int = 0,
  draws: int = 200,
) -> Bound:
  """The bound for Q = N(w, diag s) and P = N(w0, lambda I): `Bound`.

  From s = (2 |w|)^2 and lambda = e^-6, `steps` of RMSprop over w, ln s and ln lambda reduce the
  surrogate `loss(params, batch)`, which is to bound the error (cross-entropy / ln K), plus the
  square root of half the complexity. `error(params, batch)` is the fraction wrong. m: images in
  `batches` [S, B, ...].
  """
  count = len(jax.tree.leaves(batches)[0])
  draws = -(-draws // count) * count  # every batch is seen equally often
  begin = {
    "mean": params,
    "log_variance": jax.tree.map(lambda w: jnp.log(4 * w**2 + 1e-12), params),
    "log_prior": jnp.log(jnp.float32(PRIOR_VARIANCE)),
  }

  q, descent = begin, _rmsprop(steps)
  state = descent.init(q)
  for i in range(steps):  # calls: a gradient in a loop of XLA:CPU's is many times slower
    q, state = _descend(
      as_tree(loss),
      q,
      state,
      start,
      jax.random.fold_in(key, i),
      _batch(batches, i),
      m=m,
      steps=steps,
    )
  found = _measured(as_tree(error), q, start, batches, jax.random.fold_in(key, steps), draws)
  wrong, divergence, prior = map(float, found)
  certain = inverse_kl(wrong, math.log(2 / DELTA_MONTE_CARLO) / draws)
  bound = inverse_kl(certain, float(complexity(divergence, prior, m)))
  return Bound(bound, wrong, divergence, prior)


def _rmsprop(steps):
  """The optimizer of `steps` steps; its rate drops after three quarters of them."""
  rate = optax.piecewise_constant_schedule(1e-3, {max(steps * 3 // 4, 1): 0.1})
  return optax.rmsprop(rate, decay=0.9)


def _batch(batches, i):
  """Batch i of S, over and over."""
  return jax.tree.map(lambda x: x[i % len(x)], batches)


def _draw(q, key):
  """Parameters of one network of Q; q: mean, log_variance, log_prior."""
  leaves, structure = jax.tree.flatten(q["mean"])
  keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
  return jax.tree.map(
    lambda w, s, k: w + jnp.exp(s / 2) * jax.random.normal(k, w.shape, w.dtype),
    q["mean"],
    q["log_variance"],
    keys,
  )


def _divergence(q, start):
  variance = jax.tree.map(jnp.exp, q["log_variance"])
  return kl(q["mean"], start, variance, jnp.exp(q["log_prior"]))


@compiled(static_argnames=("m", "steps"))
def _descend(loss, q, state, start, key, batch, *, m, steps):
  """(q, state of the optimizer) after a step on the surrogate of the bound."""

  def objective(q):
    prior = jnp.minimum(jnp.exp(q["log_prior"]), 0.99 * SCALE)
    return loss(_draw(q, key), batch) + jnp.sqrt(
      complexity(_divergence(q, start), prior, m) / 2
    )

  updates, state = _rmsprop(steps).update(jax.grad(objective)(q), state)
  return optax.apply_updates(q, updates), state


@compiled(static_argnames="draws")
def _measured(error, q, start, batches, key, draws):
  """(error of Q from `draws` networks, KL, lambda)."""
  # The union bound holds for the priors c exp(-j / b) with a whole j alone.
  j = jnp.maximum(jnp.round(PRECISION * (math.log(SCALE) - q["log_prior"])), 1)
  q = q | {"log_prior": math.log(SCALE) - j / PRECISION}

  def wrong(i):
    return error(_draw(q, jax.random.fold_in(key, i)), _batch(batches, i))

  return (
    lax.map(wrong, jnp.arange(draws)).mean(),
    _divergence(q, start),
    jnp.exp(q["log_prior"]),
  )


def sigma_search(
  accuracy: Callable[..., Any],
  params: PyTree,
  *,
  key: Key[Array, ""],
  batches: PyTree | None = None,
  relative: bool = False,
  drop: float = 0.1,
  draws: int = 10,
  steps: int = 15,
) -> Sigma:
  """The largest sigma in [0, 2] whose noise costs `drop` of the accuracy: `Sigma`.

  By bisection over the mean of `draws` networks w + N(0, sigma^2), or where `relative`
  w + N(0, sigma^2 |w|^2); the same draws at every sigma (Jiang et al., ICLR 2020,
  arXiv:1912.02178). `accuracy(params)`, or `accuracy(params, batch)` with `batches` [S, ...].
  """
  keys = jax.random.split(key, draws)

  def mean_accuracy(sigma):
    return float(_noisy(as_tree(accuracy), params, batches, sigma, keys, relative=relative))

  least = mean_accuracy(0.0) - drop
  low, high = 0.0, 2.0
  for _ in range(steps):
    middle = (low + high) / 2
    if mean_accuracy(middle) >= least:
      low = middle
    else:
      high = middle
  sigma = (low + high) / 2
  return Sigma(sigma, 1 / sigma**2)


@compiled(static_argnames="relative")
def _noisy(accuracy, params, batches, sigma, keys, *, relative):
  def one(key):
    moved = perturbed(key, params, sigma, relative=relative)
    return mean_over(lambda *batch: accuracy(moved, *batch), batches)

  return lax.map(one, keys).mean()


def published(configs: Iterable[Mapping[str, Any]]) -> list[str]:
  """A line with Table S5's numbers for each network and whole dataset among runs' configs."""
  lines = {}
  for config in configs:
    data, network = config["data"], config["network"]
    if network in TABLE_S5 and data["name"] in CIFAR and data["fraction"] == 1:
      numbers = TABLE_S5[network][CIFAR.index(data["name"])]
      listed = zip(("base", "dml", "kdcl", "okdph"), numbers, strict=True)
      lines[network, data["name"]] = (
        f"Table S5, {network} on {data['name']} [10⁶ nats]: "
        + ", ".join(f"{method} {number:.2f}" for method, number in listed)
      )
  return list(lines.values())


def analyse(
  subjects: Sequence[Subject],
  *,
  readers: Sequence[str] = (),
  images: int = 1000,
  seed: int = 0,
  batch: int = 250,
  points: int = 6,
  steps: int = 0,
) -> Finding:
  """The three quantities over training, from snapshots, for one network of each run: `Finding`.

  readers: of each run the first that it has; () for its first network. points: snapshots,
  evenly spaced. steps: of RMSprop on the bound.
  """
  rows, numbers, curves, scalars = [], {}, {}, {}
  total = sum(min(points, len(subject.steps())) for subject in subjects)
  with Progress("pac_bayes", total, "snapshot") as bar:
    for subject in subjects:
      if subject.steps()[0]:
        raise ValueError(
          f"{subject.run.path} has no snapshot of its start, the prior's mean; train it again"
        )
      trajectory = subject.trajectory(points)
      *_, final = trajectory.values()
      reader = next((r for r in readers or final if r in final), None)
      if reader is None:
        raise ValueError(
          f"{subject.run.path} has no network {' or '.join(readers)}; it has {', '.join(final)}"
        )
      start = subject.networks_at(0)[reader]["params"]
      pictures = subject.images(images, seed=seed, batch=batch)
      found = []
      for step, networks in trajectory.items():
        found.append(
          {"epoch": step / subject.epoch_steps}
          | _quantities(subject, networks[reader], start, pictures, seed, steps)
        )
        bar.update()
      name = f"{subject.name}: {reader}"
      numbers[name] = {"reader": reader, "images": pictures.label.size, "epochs": found}
      curves[name] = {"x": [f["epoch"] for f in found]}
      for measure in found[-1]:
        curves[name][measure] = [f[measure] for f in found]
      last = found[-1]
      scalars[name] = {measure: last[measure] for measure in last if measure != "epoch"}
      rows.append((name, *last.values()))
  headers = ("network", *(measure.replace("_", " ") for measure in last))
  panels = {
    "kl_start": ("KL of Table S5 / 10⁶ (w₀: start)", False),
    "inverse_sigma_squared": ("1/σ², accuracy - 0.1", True),
    "inverse_relative_sigma_squared": ("1/σ², in units of |w|", True),
  }
  for curve in curves.values():
    curve["kl_start"] = [value / 1e6 for value in curve["kl_start"]]
  figure = figures.lines(panels, merged(curves), xlabel="epoch")
  notes = (
    f"Warning: {WARNING}",
    *published(subject.config for subject in subjects),
    VALIDITY,
    f"{bar.speed()}, of {pictures.label.size} images each",
  )
  return Finding(headers, rows, numbers, figure, notes, scalars)


def _quantities(subject, variables, start, pictures, seed, steps):
  params, stats = variables["params"], variables["batch_stats"]
  key, classes = jax.random.key(seed), subject.config["data"]["classes"]
  rate = network_accuracy(subject.net, stats)
  bound = dziugaite_roy(
    Partial(_surrogate, network_loss(subject.net, stats), math.log(classes)),
    Partial(_wrong, rate),
    params,
    start,
    pictures.label.size,
    key=key,
    batches=pictures,
    steps=steps,
  )
  plain, relative = (
    sigma_search(rate, params, key=key, batches=pictures, relative=relative)
    for relative in (False, True)
  )
  return {
    "kl_zero": kl_table(params),
    "kl_start": kl_table(params, start),
    "bound": bound.error,
    "bound_kl": bound.kl,
    "bound_train_error": bound.train_error,
    "inverse_sigma_squared": plain.inverse_square,
    "inverse_relative_sigma_squared": relative.inverse_square,
    "weight_norm": float(optax.tree.norm(params)),
  }


def _surrogate(loss, scale, params, batch):
  return loss(params, batch) / scale


def _wrong(rate, params, batch):
  return 1 - rate(params, batch)
