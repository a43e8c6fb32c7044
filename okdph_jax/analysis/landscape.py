"""Loss on a plane of parameter space, and on the line between two networks."""

import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float64, Key

from okdph_jax.analysis import figures
from okdph_jax.analysis.barrier import between, distance, height
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.points import (
  Images,
  measure,
  once_per_network,
  reestimate,
  speed_note,
  sweep,
)
from okdph_jax.analysis.subject import Subject, students, targets
from okdph_jax.core import Variables


class Plane(NamedTuple):
  """origin + a directions[0] + b directions[1], for variables {"params", "batch_stats"}."""

  origin: Variables
  directions: Variables  # with a leading axis 2; their parameters are unit vectors for PCA
  scores: Float64[np.ndarray, "R 2"]  # the snapshots' coordinates
  explained: Float64[np.ndarray, " 2"]  # their share of the snapshots' variance


def pca_plane(snapshots: Variables) -> Plane:
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
  if len(values) < 2 or not values[1] > 1e-12 * max(values[0], 1e-300):
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


def random_plane(key: Key[Array, ""], variables: Variables) -> Plane:
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


def at(origin: Variables, directions: Variables, point: Float[Array, " 2"]) -> Variables:
  """The variables origin + sum_j point_j directions_j."""

  def move(path, leaf, steps):
    moved = leaf + jnp.tensordot(point.astype(leaf.dtype), steps, 1)
    return jnp.maximum(moved, 0) if path[-1].key == "var" else moved  # no negative variance

  return jax.tree_util.tree_map_with_path(move, origin, directions)


def grid(
  scores: Float[np.ndarray, "R 2"], points: int, margin: float = 0.2
) -> tuple[Float[np.ndarray, " n"], ...]:
  """Coordinates (x, y) around `scores`, with a margin: this part of the longer side."""
  low, high = scores.min(0), scores.max(0)
  around = margin * (high - low).max()
  return tuple(np.linspace(low - around, high + around, points).T)


@once_per_network
def _on_plane(net):
  def value(context, point):
    origin, directions, images, statistics = context
    return _measured(net, at(origin, directions, point), images, statistics)

  return value


@once_per_network
def _beside_snapshot(net):
  def value(context, point):
    snapshots, directions, images, statistics = context
    nearest = jax.tree.map(lambda x: x[point["snapshot"]], snapshots)
    return _measured(net, at(nearest, directions, point["offset"]), images, statistics)

  return value


def _measured(net, variables, images, statistics):
  if statistics is not None:
    variables = reestimate(net, variables, statistics)
  return measure(net, variables, images)


def evaluate(
  net: nn.Module,
  plane: Plane,
  x: Float[np.ndarray, " n"],
  y: Float[np.ndarray, " m"],
  images: Images,
  *,
  statistics: Float[Array, "S B H W C"] | None = None,
  snapshots: Variables | None = None,
  **how: Any,
) -> tuple[dict[str, Float[np.ndarray, "m n"]], float]:
  """Loss and accuracy at x by y of a plane, and how many points per second.

  statistics: images for new batch statistics at every point; None takes those
  that the plane has. snapshots: the stack that the plane was fitted on; each point then lies in
  the parallel plane through the nearest of them and has its batch statistics, as in the figures
  of OKDPH's release. how: `sweep`'s partial_dir and title.
  """
  points = np.stack([a.ravel() for a in np.meshgrid(x, y)], 1)  # [m n, 2]
  if snapshots is None:
    context = (plane.origin, plane.directions, images, statistics)
    values, speed = sweep(_on_plane(net), context, points.astype(np.float32), **how)
  else:
    nearest = np.linalg.norm(points[:, None] - plane.scores, axis=-1).argmin(1)
    offset = (points - plane.scores[nearest]).astype(np.float32)
    still = jax.tree.map(np.zeros_like, plane.directions["batch_stats"])
    context = (snapshots, plane.directions | {"batch_stats": still}, images, statistics)
    grid = {"snapshot": nearest.astype(np.int32), "offset": offset}
    values, speed = sweep(_beside_snapshot(net), context, grid, **how)
  return {name: value.reshape(len(y), len(x)) for name, value in values.items()}, speed


def analyse(
  subjects: Sequence[Subject],
  *,
  plane: str = "pca",
  readers: Sequence[str] = (),
  which: str | None = None,
  size: int = 41,
  images: int = 1000,
  split: str = "train",
  seed: int = 0,
  batch: int = 250,
  statistics: str = "reestimated",
  statistics_images: int = 500,
  value: str = "loss",
  reach: float = 1.0,
  partial_dir: str | os.PathLike[str] | None = None,
) -> Finding:
  """Loss or error around the networks of the runs: `Finding`.

  plane: "pca", one plane through the mean of all students' snapshots of all runs; "nearest",
  the same as OKDPH's release draws it, see `evaluate`; "random", filter-normalised directions
  around each network, the same for all, `reach` filter norms far; "line", between every two
  students of each run. readers: of a random plane, as `targets` has them. statistics:
  "reestimated" on `statistics_images` of the training split at every point, or "mixed",
  interpolated like the parameters. value: "loss" or "error".
  """
  look = dict(split=split, seed=seed, batch=batch)
  if readers and plane != "random":
    raise ValueError(f"plane={plane} goes through all students: readers are of plane=random")
  if which and plane in ("pca", "nearest"):
    raise ValueError(f"plane={plane} goes through all snapshots: which={which} has no effect")
  if plane == "line":
    return _lines(subjects, images, look, which, value, statistics, partial_dir)

  def pictures(subject):
    new = subject.images(statistics_images, seed=seed + 1, batch=batch).image
    return subject.images(images, **look), new if statistics == "reestimated" else None

  if plane == "random":
    around = targets(subjects, readers, which)
    return _random(around, pictures, size, look, reach, value, partial_dir)
  trajectories, start = [], 0
  rows = []
  for subject in subjects:
    there = subject.trajectory()
    for reader in students(there[max(there)]):
      rows += [there[step][reader] for step in there]
      trajectories.append((subject, reader, list(there), slice(start, len(rows))))
      start = len(rows)
  shapes = {str(jax.tree.map(np.shape, row)) for row in rows}
  if len(shapes) > 1:
    raise ValueError("the runs have different networks; one plane needs one architecture")
  stack = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
  fitted = pca_plane(stack)
  x, y = grid(fitted.scores, size)
  measured, new = pictures(subjects[0])
  values, speed = evaluate(
    subjects[0].net,
    fitted,
    x,
    y,
    measured,
    statistics=new,
    snapshots=stack if plane == "nearest" else None,
    partial_dir=partial_dir,
    title="landscape",
  )
  ends = {
    f"{subject.name}: {reader}": fitted.scores[part][-1]
    for subject, reader, _, part in trajectories
  }
  lowest = np.unravel_index(np.nanargmin(values["loss"]), values["loss"].shape)
  numbers = {
    "x": x,
    "y": y,
    **values,
    "explained": fitted.explained,
    "lowest": {"x": x[lowest[1]], "y": y[lowest[0]], "loss": values["loss"][lowest]},
    "trajectories": {
      f"{subject.name}: {reader}": {"steps": steps, "scores": fitted.scores[part]}
      for subject, reader, steps, part in trajectories
    },
    "images": measured.label.size,
  }
  seen = measured.label.size + (0 if new is None else new.shape[0] * new.shape[1])
  origin = jax.tree.map(jnp.asarray, fitted.origin)
  notes = (
    f"explained variance {fitted.explained[0]:.1%} and {fitted.explained[1]:.1%}; lowest loss "
    f"on the grid {values['loss'][lowest]:.4g}",
    speed_note(speed, seen, subjects[0].net, origin, measured),
  )
  table = [(name, *end) for name, end in ends.items()]
  figure = _draw_plane(numbers, value, subjects[0].config["data"]["classes"], split)
  return Finding(("end of", "PC 1", "PC 2"), table, numbers, figure, notes)


def _random(networks, pictures, size, look, reach, value, partial_dir):
  x = np.linspace(-reach, reach, size + 1 - size % 2)  # odd: the network is a point of it
  numbers, rows = {}, []
  for target in networks:
    measured, new = pictures(target.subject)
    around = random_plane(jax.random.key(look["seed"]), target.variables)
    values, speed = evaluate(
      target.net,
      around,
      x,
      x,
      measured,
      statistics=new,
      partial_dir=partial_dir,
      title=target.name,
    )
    middle = values["loss"][len(x) // 2, len(x) // 2]
    numbers[target.name] = {"x": x, "y": x, **values, "images": measured.label.size}
    flat = (values["loss"] < middle + 1).mean()
    rows.append((target.name, target.test_accuracy, middle, values["loss"].mean(), flat))
  seen = measured.label.size + (0 if new is None else new.shape[0] * new.shape[1])
  notes = (speed_note(speed, seen, target.net, target.variables, measured),)
  headers = ("network", "test accuracy", "loss", "mean loss on the plane", "share below +1 nat")
  figure = _draw_random(
    numbers, value, networks[0].subject.config["data"]["classes"], look["split"]
  )
  return Finding(headers, rows, numbers, figure, notes)


def _lines(subjects, images, look, which, value, statistics, partial_dir):
  numbers, curves, rows = {}, {}, []
  for subject in subjects:
    _, networks = subject.networks(which)
    names = students(networks)
    if len(names) < 2:
      raise ValueError(f"{subject.run.path} trains one network; a line needs two students")
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *(networks[n] for n in names))
    pairs = list(itertools.combinations(range(len(names)), 2))
    pictures = subject.images(images, **look)
    values, speed = between(
      subject.net,
      stack,
      pairs,
      pictures,
      points=21,
      partial_dir=partial_dir,
      title=f"line {subject.name}",
    )
    numbers[subject.name] = {"pairs": pairs, **values, "images": pictures.label.size}
    for (a, b), loss, accuracy in zip(
      pairs, values[f"{statistics}_loss"], values[f"{statistics}_accuracy"], strict=True
    ):
      name = f"{subject.name}: {a}-{b}"
      curve = {"x": np.linspace(0, 1, 21), "loss": loss, "error": 100 * (1 - accuracy)}
      curves[name] = curve
      apart = distance(networks[names[a]], networks[names[b]])
      rows.append((name, apart, loss[0], loss[-1], loss.max(), height(loss)))
  headers = ("students", "distance", "first loss", "second loss", "highest", "barrier")
  panels = {value: (_label(value, look["split"]), False)}
  figure = figures.lines(panels, curves, xlabel="position between two students")
  one = jax.tree.map(jnp.asarray, networks[names[0]])
  notes = (speed_note(speed, 3 * pictures.label.size, subject.net, one, pictures),)
  return Finding(headers, rows, numbers, figure, notes)


def _label(value, split):
  quantity, unit = {"loss": ("cross-entropy", "nats"), "error": ("error", "%")}[value]
  return f"{quantity},\n{'training' if split == 'train' else split} images [{unit}]"


def _shown(panels, value, classes):
  """([what each shows], contour levels): a loss only up to twice that of a guess, ln K."""
  if value == "error":
    return [100 * (1 - panel["accuracy"]) for panel in panels], np.linspace(0, 100, 21)
  clip = 2 * np.log(classes)
  losses = [np.nan_to_num(panel["loss"], nan=clip).clip(1e-3, clip) for panel in panels]
  low, high = np.min(losses), np.max(losses)
  return losses, np.geomspace(0.98 * low, 1.02 * high, 21)


@figures.styled
def _draw_plane(numbers, value, classes, split):
  labels = len(numbers["trajectories"]) + 3
  height = 2.65 * np.ptp(numbers["y"]) / np.ptp(numbers["x"])
  figure, ((axes,),) = figures.new(width=4.0, height=height + 0.5 + 0.18 * (-(-labels // 2)))
  (z,), levels = _shown([numbers], value, classes)
  filled = _contours(axes, numbers, z, levels)
  bar = figure.colorbar(filled, ax=axes, fraction=0.046, pad=0.03, format="%.2g")
  bar.minorticks_off()
  bar.set_label(_label(value, split))
  for i, (name, path) in enumerate(numbers["trajectories"].items()):
    a, b = path["scores"].T
    axes.plot(a, b, color="white", linewidth=2.2)
    axes.plot(a, b, color=figures.color(i), marker=".", markersize=3, linewidth=1.1, label=name)
    axes.plot(a[-1:], b[-1:], color=figures.color(i), marker="o", mec="white", markersize=6)
    if path["steps"][0] == 0:
      first = None if i else "start"
      axes.plot(a[:1], b[:1], "D", color="black", mec="white", markersize=4, label=first)
  runs = {}
  for name, path in numbers["trajectories"].items():
    runs.setdefault(name.rpartition(": ")[0], []).append(path["scores"][-1])
  for i, ends in enumerate(runs.values()):
    center = np.mean(ends, 0)
    label = None if i else "mean of the students"
    axes.plot(*center, "*", color="white", mec="black", markersize=9, label=label)
  lowest = numbers["lowest"]
  axes.plot(
    lowest["x"],
    lowest["y"],
    "X",
    color="white",
    mec="black",
    markersize=6,
    label="lowest point",
  )
  first, second = numbers["explained"]
  axes.set(
    xlabel=f"PC 1 ({first:.1%} of variance) [distance]",
    ylabel=f"PC 2 ({second:.1%}) [distance]",
    aspect="equal",
  )
  handles, names = axes.get_legend_handles_labels()
  last = [name not in numbers["trajectories"] for name in names]  # what marks points
  order = np.argsort(last, kind="stable")
  figure.legend(
    [handles[i] for i in order],
    [names[i] for i in order],
    loc="outside lower center",
    ncols=2,
  )
  return figure


@figures.styled
def _draw_random(numbers, value, classes, split):
  """A plane around each network, and in the last panel the losses along its first direction."""
  cells = len(numbers) + 1
  columns = cells if cells < 4 else 2 if cells == 4 else 4
  figure, axes = figures.new(columns, -(-cells // columns), width=2.4, height=2.3)
  *planes, line = axes.flat[:cells]
  shown, levels = _shown(numbers.values(), value, classes)
  for i, (axis, z, name) in enumerate(zip(planes, shown, numbers, strict=True)):
    panel = numbers[name]
    filled = _contours(axis, panel, z, levels)
    axis.plot(0, 0, "+", color="white")
    axis.set(title=name, aspect="equal")
    style = dict[str, Any](color=figures.color(i), marker=figures.marker(i), markersize=3)
    line.plot(panel["x"], z[len(z) // 2], label=name, **style)
  line.set(title="along direction 1", ylabel=_label(value, split))
  line.set_box_aspect(1)
  figure.legend(*line.get_legend_handles_labels(), loc="outside lower center", ncols=2)
  for axis in (*planes, line):
    axis.set_xlabel("direction 1 [filter norms]")
  for axis in planes:
    axis.set_ylabel("direction 2 [filter norms]")
  for axis in axes.flat[cells:]:
    axis.set_axis_off()
  bar = figure.colorbar(filled, ax=planes, format="%.2g", fraction=0.046, pad=0.03)
  bar.minorticks_off()
  bar.set_label(_label(value, split))
  return figure


def _contours(axes, panel, z, levels):
  from matplotlib.colors import BoundaryNorm

  norm = BoundaryNorm(levels, 256)
  style = dict(levels=levels, norm=norm)
  filled = axes.contourf(
    panel["x"], panel["y"], z, cmap=figures.COLORMAP, extend="both", **style
  )
  axes.contour(panel["x"], panel["y"], z, colors="white", linewidths=0.3, alpha=0.6, **style)
  axes.grid(False)
  return filled
