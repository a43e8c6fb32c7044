"""The Hessian of any loss over any tree: top eigenvalues, trace, spectral density.

`loss(params)`, or `loss(params, batch)` with `batches` stacked on a first axis, whose mean is
then the loss. Products are float32 on the device; everything else is float64 on the host.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Float64, Key, PyTree

from okdph_jax.analysis import figures
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.points import (
  as_tree,
  compiled,
  mean_of_calls,
  network_loss,
  plain_speed,
)
from okdph_jax.analysis.progress import Progress
from okdph_jax.analysis.replicates import merged
from okdph_jax.analysis.subject import Target

ITERATIONS = 100  # of Lanczos for eigenvalues, at most


class Spectrum(NamedTuple):
  """Stochastic Lanczos quadrature: every probe's eigenvalues and their weights."""

  nodes: Float64[np.ndarray, "probes m"]
  weights: Float64[np.ndarray, "probes m"]  # each row sums to one


class Eigenvalues(NamedTuple):
  """The largest eigenvalues, descending, and how they were found."""

  values: Float64[np.ndarray, " k"]
  residuals: Float64[np.ndarray, " k"]  # |H v - value v| of the unit eigenvector v
  products: int  # Hessian-vector products that it took
  spectrum: Spectrum  # what these products tell of all of it: one probe


class Trace(NamedTuple):
  """Hutchinson's estimates over random probes, and their standard errors."""

  trace: float
  standard_error: float
  normalized: float  # sum over tensors l of |w_l|^2 Tr(H_ll) / d_l
  normalized_standard_error: float


Tick = Callable[[], Any]  # called after every product, for a bar


def product(
  loss: Callable[..., Any],
  params: PyTree,
  batches: PyTree | None = None,
  tick: Tick = lambda: None,
) -> Callable[[PyTree], PyTree]:
  """`multiply(v) -> H v` for trees like `params`, compiled: forward over reverse."""
  one = partial(_multiply, as_tree(loss), params)

  def multiply(v):
    result = mean_of_calls(partial(one, v), batches)
    tick()
    return result

  return multiply


@compiled()
def _multiply(loss, params, v, *batch):
  return jax.jvp(jax.grad(lambda p: loss(p, *batch)), (params,), (v,))[1]


def top_eigenvalues(
  loss: Callable[..., Any],
  params: PyTree,
  k: int = 5,
  *,
  key: Key[Array, ""],
  batches: PyTree | None = None,
  iterations: int = ITERATIONS,
  tolerance: float = 1e-3,
  tick: Tick = lambda: None,
) -> Eigenvalues:
  """The k largest eigenvalues, by Lanczos with full re-orthogonalisation: `Eigenvalues`.

  Ends once the residuals of all k are below `tolerance` times the largest eigenvalue, or after
  `iterations` products, at least k; with fewer than k values in an invariant subspace.
  """
  flat, _ = ravel_pytree(params)
  k = min(k, flat.size)
  start = np.asarray(jax.random.normal(key, flat.shape), np.float64)
  multiply = _flat_product(loss, params, batches, tick)
  for alpha, beta in lanczos(multiply, start, max(iterations, k)):
    values, vectors = _tridiagonal(alpha, beta)
    residuals = np.abs(beta[-1] * vectors[-1])
    order = np.argsort(values)[::-1][:k]
    accurate = residuals[order] <= tolerance * np.abs(values).max()
    if len(alpha) >= k and accurate.all():
      break
  spectrum = Spectrum(values[None], vectors[:1] ** 2)
  return Eigenvalues(values[order], residuals[order], len(alpha), spectrum)


def trace(
  loss: Callable[..., Any],
  params: PyTree,
  *,
  key: Key[Array, ""],
  batches: PyTree | None = None,
  probes: int = 50,
  tick: Tick = lambda: None,
) -> Trace:
  """The trace by Hutchinson's estimator with Rademacher probes: `Trace`."""
  scale = [float(jnp.vdot(w, w)) / w.size for w in jax.tree.leaves(params)]
  multiply = product(loss, params, batches, tick)
  estimates = []
  for i in range(probes):
    v = _signs(params, jax.random.fold_in(key, i))
    estimates.append(jax.device_get(_dots(v, multiply(v))))
  estimates = np.asarray(estimates, np.float64)  # [probes, tensors]
  total, normalized = estimates.sum(1), estimates @ scale

  def error(x):
    return float(x.std(ddof=1) / np.sqrt(probes)) if probes > 1 else float("nan")

  return Trace(float(total.mean()), error(total), float(normalized.mean()), error(normalized))


@compiled()
def _signs(params, key):
  """A tree like `params` of random signs."""
  leaves, structure = jax.tree.flatten(params)
  signs = [
    jax.random.rademacher(jax.random.fold_in(key, i), w.shape, w.dtype)
    for i, w in enumerate(leaves)
  ]
  return jax.tree.unflatten(structure, signs)


@compiled()
def _dots(a, b):
  """The scalar product of every tensor of two trees."""
  return [jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]


def spectral_density(
  loss: Callable[..., Any],
  params: PyTree,
  *,
  key: Key[Array, ""],
  batches: PyTree | None = None,
  probes: int = 2,
  iterations: int = 30,
  tick: Tick = lambda: None,
) -> Spectrum:
  """The spectrum by stochastic Lanczos quadrature: `Spectrum` (Ghorbani et al., ICML 2019,
  arXiv:1901.10159)."""
  flat, _ = ravel_pytree(params)
  multiply = _flat_product(loss, params, batches, tick)
  iterations = min(iterations, flat.size)
  nodes, weights = np.zeros((2, probes, iterations))
  for i in range(probes):
    start = np.asarray(
      jax.random.rademacher(jax.random.fold_in(key, i), flat.shape), np.float64
    )
    *_, (alpha, beta) = lanczos(multiply, start, iterations)
    values, vectors = _tridiagonal(alpha, beta)
    nodes[i, : len(values)], weights[i, : len(values)] = values, vectors[0] ** 2
  return Spectrum(nodes, weights)


def density(
  spectrum: Spectrum, x: Float[np.ndarray, " n"], width: float
) -> Float64[np.ndarray, " n"]:
  """The spectral density at x, every node a Gaussian of standard deviation `width`."""
  distance = (x[:, None] - spectrum.nodes.reshape(1, -1)) / width
  bells = np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))
  return bells @ spectrum.weights.reshape(-1) / len(spectrum.weights)


def lanczos(
  multiply: Callable[[np.ndarray], np.ndarray],
  start: Float64[np.ndarray, " d"],
  iterations: int,
) -> Iterator[tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]]:
  """Yields (alpha, beta) of the tridiagonal matrix after m = 1, 2, ... products.

  `multiply` maps float64 vectors on the host. Full re-orthogonalisation, twice; the basis
  is kept in float32. Ends early in an invariant subspace.
  """
  basis = [(start / np.linalg.norm(start)).astype(np.float32)]
  alpha, beta = [], []
  for _ in range(min(iterations, len(start))):
    w = multiply(basis[-1])
    scale = np.linalg.norm(w)
    alpha.append(np.dot(basis[-1].astype(np.float64), w))
    for _ in range(2):
      for v in basis:
        v = v.astype(np.float64)
        w -= np.dot(v, w) * v
    beta.append(np.linalg.norm(w))
    invariant = beta[-1] <= 1e-6 * max(scale, *map(abs, alpha))
    if invariant:
      beta[-1] = 0.0
    yield np.array(alpha), np.array(beta)
    if invariant:
      return
    basis.append((w / beta[-1]).astype(np.float32))


def _tridiagonal(alpha, beta):
  return np.linalg.eigh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))


def _flat_product(loss, params, batches, tick):
  _, unravel = ravel_pytree(params)
  multiply = product(loss, params, batches, tick)

  def flat(v):
    leaves = jax.device_get(jax.tree.leaves(multiply(unravel(jnp.asarray(v)))))
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])

  return flat


def analyse(
  targets: Sequence[Target],
  *,
  images: int = 1000,
  split: str = "train",
  seed: int = 0,
  batch: int = 250,
  k: int = 5,
  probes: int = 50,
) -> Finding:
  """Top eigenvalues, trace and spectrum of the cross-entropy of every network: `Finding`.

  On `images` of each run, without augmentation, batch statistics as trained. For a distilled
  network too it is the Hessian of the cross-entropy on the labels, not of what it trained on.
  """
  rows, numbers, scalars, speeds = [], {}, {}, []
  most = max(ITERATIONS, k)
  with Progress("hessian", len(targets) * (most + probes), "product") as bar:
    for target in targets:
      pictures = target.subject.images(images, split=split, seed=seed, batch=batch)
      params, stats = target.variables["params"], target.variables["batch_stats"]
      loss, key = network_loss(target.net, stats), jax.random.key(seed)
      how = dict[str, Any](key=key, batches=pictures, tick=bar.update)
      jax.block_until_ready(product(loss, params, pictures)(params))  # compiles
      began = time.monotonic()
      top = top_eigenvalues(loss, params, k, **how)
      seconds = time.monotonic() - began
      bar.update(most - top.products)
      last = top.values[k - 1] if len(top.values) >= k else np.nan
      traced = trace(loss, params, probes=probes, **how)
      plain = plain_speed(target.net, target.variables, pictures)
      forward = pictures.label.size / plain
      speeds.append((top.products / seconds, seconds / top.products / forward))
      size = float(optax.tree.norm(params))
      rows.append(
        (
          target.name,
          target.test_accuracy,
          *top.values[:1],
          last,
          traced.trace,
          traced.standard_error,
          traced.normalized,
          size,
        )
      )
      scalars[target.name] = {
        "test_accuracy": target.test_accuracy,
        "eigenvalue_1": top.values[0],
        f"eigenvalue_{k}": last,
        "trace": traced.trace,
        "normalised_trace": traced.normalized,
        "weight_norm": size,
      }
      numbers[target.name] = {
        "test_accuracy": target.test_accuracy,
        "images": pictures.label.size,
        "eigenvalues": top,
        "trace": traced,
        "weight_norm": size,
        "products_per_second": speeds[-1][0],
        "forward_passes_per_product": speeds[-1][1],
      }
  headers = (
    "network",
    "test accuracy",
    "eigenvalue 1",
    f"eigenvalue {k}",
    "trace",
    "± s.e.",
    "normalised trace",
    "weight norm",
  )
  rate, passes = np.mean(speeds, 0)
  notes = (
    f"{rate:.3g} Hessian-vector products per second, each in the time of {passes:.1f} plain "
    "evaluations of the same images",
  )
  return Finding(headers, rows, numbers, _draw(numbers), notes, scalars)


@figures.styled
def _draw(numbers):
  figure, axes = figures.new(2, width=3.0, height=2.6)
  left, right = axes[0]
  nodes = np.concatenate(
    [found["eigenvalues"].spectrum.nodes.ravel() for found in numbers.values()]
  )
  low, high = nodes.min(), nodes.max()
  x = np.linspace(low - 0.05 * (high - low), high + 0.1 * (high - low), 800)
  curves = merged(
    {
      name: {
        "eigenvalues": found["eigenvalues"].values,
        "density": density(found["eigenvalues"].spectrum, x, 0.01 * (high - low)),
      }
      for name, found in numbers.items()
    }
  )
  for i, (name, curve) in enumerate(curves.items()):
    style: dict[str, Any] = dict(color=figures.color(i), label=name)
    values, error = curve["eigenvalues"], curve.get("eigenvalues_error")
    rank = np.arange(1, len(values) + 1)
    left.errorbar(rank, values, error, marker=figures.marker(i), capsize=2, **style)
    right.plot(x, np.maximum(curve["density"], 1e-9), **style)
  left.set(xlabel="rank", ylabel="eigenvalue of the Hessian", xticks=rank)
  left.set_ylim(bottom=0)
  right.set(xlabel="eigenvalue", ylabel="spectral density", yscale="log", ylim=(1e-7, None))
  figures.legend(right)
  return figure
