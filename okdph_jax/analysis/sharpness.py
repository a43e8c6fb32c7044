"""How much the loss rises around a network: at worst within a ball, and on average.

`loss(params)`, or `loss(params, batch)` with `batches` stacked on a first axis, whose mean is
then the loss.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Key, PyTree

from okdph_jax.analysis import correlation, figures
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.pac_bayes import kl_table, published
from okdph_jax.analysis.points import (
  as_tree,
  compiled,
  mean_of_calls,
  mean_over,
  network_loss,
  perturbed,
  plain_speed,
  unstacked,
)
from okdph_jax.analysis.progress import Progress
from okdph_jax.analysis.replicates import merged, run_of
from okdph_jax.analysis.subject import Target
from okdph_jax.intervals import Interval, interval

STEPS = 20  # of an ascent


def epsilon_sharpness(
  loss: Callable[..., Any],
  params: PyTree,
  rho: float,
  *,
  key: Key[Array, ""],
  batches: PyTree | None = None,
  adaptive: bool = False,
  steps: int = STEPS,
) -> float:
  """max L(w + d) - L(w) over |d| <= rho |w|, by projected gradient ascent from a random d.

  adaptive: over |d / |w|| <= rho sqrt(n), n parameters: every weight moves by rho of its own
  size on average, so that rescaled weights give the same number (Kwon et al., ICML 2021,
  arXiv:2102.11600).
  """
  return _ascent(as_tree(loss), params, rho, key, batches, adaptive=adaptive, steps=steps)


def m_sharpness(
  loss: Callable[..., Any],
  params: PyTree,
  rho: float,
  *,
  key: Key[Array, ""],
  batches: PyTree,
  adaptive: bool = False,
  steps: int = STEPS,
) -> float:
  """The mean over batches of each batch's own epsilon-sharpness (Foret et al., ICLR 2021,
  arXiv:2010.01412); m is the size of a batch."""

  settings = dict(adaptive=adaptive, steps=steps)
  alone = [jax.tree.map(lambda x: x[None], batch) for batch in unstacked(batches)]
  found = [_ascent(as_tree(loss), params, rho, key, batch, **settings) for batch in alone]
  return sum(found) / len(found)


def expected_sharpness(
  loss: Callable[..., Any],
  params: PyTree,
  sigma: float,
  *,
  key: Key[Array, ""],
  batches: PyTree | None = None,
  draws: int = 20,
) -> Interval:
  """mean L(w + d) - L(w) with d ~ N(0, sigma^2 |w|^2), element by element: `Interval`."""

  keys = jax.random.split(key, draws)
  rises = _rises(as_tree(loss), params, jnp.float32(sigma), batches, keys)
  return interval(rises.tolist())


@compiled()
def _rises(loss, params, sigma, batches, keys):
  def value(p):
    return mean_over(lambda *batch: loss(p, *batch), batches)

  base = value(params)
  return lax.map(lambda key: value(perturbed(key, params, sigma, relative=True)) - base, keys)


def _ascent(loss, params, rho, key, batches, *, adaptive, steps):
  """The highest rise along the way; in u, where d = |w| u if adaptive, else d = u."""
  count = sum(w.size for w in jax.tree.leaves(params))
  radius = rho * (np.sqrt(count) if adaptive else float(optax.tree.norm(params)))
  unit = jax.tree.map(jnp.abs if adaptive else jnp.ones_like, params)
  zeros = jax.tree.map(jnp.zeros_like, params)

  def value_at(u):
    return mean_of_calls(partial(_value_and_gradient, loss, params, unit, u), batches)

  base, _ = value_at(zeros)
  noise = perturbed(key, zeros, 1.0, relative=False)
  u = _scaled(noise, 0.1 * radius)
  values = []
  for _ in range(steps):
    value, gradient = value_at(u)
    values.append(value)
    u = _climb(u, gradient, radius, 2.5 * radius / steps)
  values.append(value_at(u)[0])
  return float(np.maximum(0.0, np.max(values) - base))  # NaN stays NaN


@compiled()
def _value_and_gradient(loss, params, unit, u, *batch):
  """The loss at params + unit u, and its gradient by u."""

  def value(u):
    return loss(jax.tree.map(lambda w, s, d: w + s * d, params, unit, u), *batch)

  return jax.value_and_grad(value)(u)


@compiled()
def _climb(u, gradient, radius, step):
  """u after a step of this length along the gradient, projected back into the ball."""
  u = jax.tree.map(jnp.add, u, _scaled(gradient, step))
  return _scaled(u, jnp.minimum(optax.tree.norm(u), radius))


def _scaled(tree, length):
  factor = length / jnp.maximum(optax.tree.norm(tree), 1e-30)
  return jax.tree.map(lambda x: factor * x, tree)


def analyse(
  targets: Sequence[Target],
  *,
  images: int = 1000,
  split: str = "train",
  seed: int = 0,
  batch: int = 250,
  rho: Sequence[float] = (0.01, 0.05),
  sigma: float = 0.1,
  draws: int = 20,
) -> Finding:
  """Sharpness of the cross-entropy of every network: `Finding`.

  On `images` of each run, without augmentation, batch statistics as trained. m-sharpness takes
  the batches that there are, m = `batch`.
  """
  rows, numbers = [], {}
  with Progress("sharpness", len(targets) * (3 * len(rho) + 1), "number") as bar:
    for target in targets:
      pictures = target.subject.images(images, split=split, seed=seed, batch=batch)
      params, stats = target.variables["params"], target.variables["batch_stats"]
      loss, key = network_loss(target.net, stats), jax.random.key(seed)
      ball = dict[str, Any](key=key, batches=pictures)
      found = {
        "test_accuracy": target.test_accuracy,
        "weight_norm": float(optax.tree.norm(params)),
        "kl_table": kl_table(params) / 1e6,
      }
      for radius in rho:
        plain = found[f"epsilon_{radius:g}"] = epsilon_sharpness(loss, params, radius, **ball)
        bar.update()
        began = time.monotonic()  # what follows is compiled now
        found[f"adaptive_{radius:g}"] = epsilon_sharpness(
          loss, params, radius, adaptive=True, **ball
        )
        seconds = time.monotonic() - began
        bar.update()
        one = len(pictures.label) == 1  # then both are the same
        found[f"m_{radius:g}"] = plain if one else m_sharpness(loss, params, radius, **ball)
        bar.update()
      found["expected"] = expected_sharpness(loss, params, sigma, draws=draws, **ball)
      bar.update()
      count, m = pictures.label.size, pictures.label.shape[1]
      numbers[target.name] = found | {"images": count, "m": m}
  drawn = {
    name: found | {"expected": found["expected"].mean, "expected_error": found["expected"].half}
    for name, found in numbers.items()
  }
  names = list(found)
  headers = ("network", *(n.replace("_", " ") for n in names), "± 95 %")
  rows = [
    (name, *(row[n] for n in names), row["expected_error"]) for name, row in drawn.items()
  ]
  last = f"{rho[-1]:g}"
  panels = {
    "expected": (f"expected, σ = {sigma:g} |w| [nats]", True),
    f"epsilon_{last}": (f"ε-sharpness, ρ = {last} [nats]", True),
    f"adaptive_{last}": (f"adaptive sharpness, ρ = {last} [nats]", True),
    "weight_norm": ("weight norm", False),
    "kl_table": ("KL of Table S5 [10⁶ nats]", False),
  }
  rate = (STEPS + 2) / seconds  # gradients of all images: an ascent's, with start and end
  times = plain_speed(target.net, target.variables, pictures) / (rate * count)
  notes = [
    "Rise of the cross-entropy in nats within rho |w| (adaptive: rho of every weight); "
    "kl table in 10⁶ nats.",
    *published(target.subject.config for target in targets),
    f"{rate:.3g} gradients per second of {count} images, each in the time of {times:.1f} plain "
    "evaluations of them",
  ]
  runs = {name: run_of(name) for name in drawn}
  groups = {target.name: target.group for target in targets}
  correlations = correlation.with_accuracy(drawn, panels, runs)
  over_methods = correlation.with_accuracy(drawn, panels, groups)
  if correlations:
    notes.append(correlation.note(correlations, "runs"))
    if over_methods:
      notes.append(correlation.note(over_methods, "methods"))
    figure = correlation.scatter(panels, drawn, groups, correlations)
  else:
    figure = figures.dots({"test_accuracy": ("test accuracy", False)} | panels, merged(drawn))
  numbers = {
    "networks": numbers,
    "correlations": correlations,
    "correlations_over_methods": over_methods,
  }
  scalars = {name: {m: row[m] for m in names} for name, row in drawn.items()}
  return Finding(headers, rows, numbers, figure, tuple(notes), scalars)
