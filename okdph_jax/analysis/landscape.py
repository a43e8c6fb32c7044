"""Loss on a plane of parameter space, and on the line between two networks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Plane(NamedTuple):
  """origin + a directions[0] + b directions[1], for variables {"params", "batch_stats"}."""

  origin: Any  # variables
  directions: Any  # variables with a leading axis 2; their parameters are unit vectors for PCA
  scores: np.ndarray  # float64 [R, 2], the snapshots' coordinates
  explained: np.ndarray  # float64 [2], their share of the snapshots' variance


def pca_plane(snapshots):
  """The plane of the two principal components of R snapshots: a stack of variables [R, ...].

  The components are those of the parameters, mean-centred and not scaled, so coordinates are
  Euclidean distances; the batch statistics move along with the same weights. By the R x R Gram
  matrix in float64. The largest score of each component in magnitude is positive.
  """
  snapshots = jax.tree.map(np.asarray, snapshots)
  leaves = jax.tree.leaves(snapshots["params"])
  gram = np.zeros((len(leaves[0]),) * 2)
  for leaf in leaves:
    rows = leaf.reshape(len(leaf), -1).astype(np.float64)
    rows -= rows.mean(0)
    gram += rows @ rows.T
  values, vectors = np.linalg.eigh(gram)
  values, vectors = values[:-3:-1], vectors[:, :-3:-1]
  if not values[1] > 1e-12 * max(values[0], 1e-300):
    raise ValueError(
      f"{len(gram)} snapshots lie on a line or a point: a plane needs three that differ"
    )
  vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), [0, 1]])
  scores = vectors * np.sqrt(values)
  weights = (vectors / np.sqrt(values)).T  # [2, R]: a component as a sum of centred rows
  weights = weights - weights.mean(1, keepdims=True)

  def component(leaf):
    flat = leaf.reshape(len(leaf), -1)
    return (weights @ flat).reshape(2, *leaf.shape[1:]).astype(leaf.dtype)

  origin = jax.tree.map(
    lambda leaf: leaf.mean(0, dtype=np.float64).astype(leaf.dtype), snapshots
  )
  return Plane(
    origin, jax.tree.map(component, snapshots), scores, values / max(gram.trace(), 1e-300)
  )


def random_plane(key, variables):
  """Two random directions through a network, filter-normalised.

  Every filter of a direction (all that feeds one output) is scaled to the norm of the
  network's own; biases and BatchNorm's parameters stay (Li et al., NeurIPS 2018,
  arXiv:1712.09913). Coordinates are multiples of the filters' norms.
  """
  leaves, structure = jax.tree.flatten(variables["params"])

  def direction(key):
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, map(_filter_normalized, keys, leaves))

  params = jax.vmap(direction)(jax.random.split(key))
  stats = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), variables["batch_stats"])
  scores, explained = np.zeros((1, 2)), np.full(2, np.nan)
  return Plane(variables, {"params": params, "batch_stats": stats}, scores, explained)


def _filter_normalized(key, leaf):
  if leaf.ndim < 2:
    return jnp.zeros_like(leaf)
  noise = jax.random.normal(key, leaf.shape, leaf.dtype)
  axes = tuple(range(leaf.ndim - 1))  # Flax has a kernel's outputs last
  size, own = (jnp.sqrt((x**2).sum(axes)) for x in (noise, leaf))
  return noise * (own / size)


def at(origin, directions, point):
  """The variables origin + sum_j point_j directions_j."""

  def move(path, leaf, steps):
    moved = leaf + jnp.tensordot(point.astype(leaf.dtype), steps, 1)
    return jnp.maximum(moved, 0) if path[-1].key == "var" else moved  # no negative variance

  return jax.tree_util.tree_map_with_path(move, origin, directions)


def grid(scores, points, margin=0.2):
  """Coordinates (x [n], y [n]) of a square grid around `scores` [R, 2], with a margin."""
  low, high = scores.min(0), scores.max(0)
  reach = (high - low).max() * (0.5 + margin)
  return tuple(np.linspace(c - reach, c + reach, points) for c in (low + high) / 2)


def barrier(losses):
  """Height of the barrier on a line: the highest loss minus the mean of the two ends."""
  return float(np.max(losses) - (losses[0] + losses[-1]) / 2)
