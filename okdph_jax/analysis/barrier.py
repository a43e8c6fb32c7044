"""Distance and barrier between the students of a run over its training."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Float

from okdph_jax.analysis import figures
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.points import (
  Images,
  measure,
  once_per_network,
  reestimate,
  speed_note,
  sweep,
)
from okdph_jax.analysis.replicates import merged
from okdph_jax.analysis.subject import Subject, students
from okdph_jax.core import Variables


@once_per_network
def _between(net):
  def value(context, point):
    networks, images = context
    first = jax.tree.map(lambda x: x[point["i"]], networks)
    second = jax.tree.map(lambda x: x[point["j"]], networks)
    mixed: Any = optax.incremental_update(second, first, point["t"])
    found = {}
    for mode, variables in (
      ("mixed", mixed),
      ("reestimated", reestimate(net, mixed, images.image)),
    ):
      for name, number in measure(net, variables, images).items():
        found[f"{mode}_{name}"] = number
    return found

  return value


def between(
  net: nn.Module,
  networks: Variables,
  pairs: Sequence[tuple[int, int]],
  images: Images,
  *,
  points: int = 11,
  partial_dir: str | os.PathLike[str] | None = None,
  title: str = "",
) -> tuple[dict[str, Float[np.ndarray, "pairs points"]], float]:
  """Loss and accuracy on the lines between networks, and how many points per second.

  networks: a stack of variables [R, ...]; pairs: indices of two of them. "mixed_loss" with the
  batch statistics interpolated like the parameters, "reestimated_loss" with those of the
  images at that point; accuracies likewise.
  """
  t = np.linspace(0, 1, points, dtype=np.float32)
  i, j = np.asarray(pairs, np.int32).T
  grid = {"i": i.repeat(points), "j": j.repeat(points), "t": np.tile(t, len(i))}
  context = (jax.tree.map(jnp.asarray, networks), images)
  values, speed = sweep(_between(net), context, grid, partial_dir=partial_dir, title=title)
  return {name: value.reshape(len(i), points) for name, value in values.items()}, speed


def height(losses: Float[np.ndarray, " P"]) -> float:
  """Height of the barrier on a line: how far a loss rises above the straight line of its ends.

  losses: at equidistant points, both ends among them (Entezari et al., ICLR 2022,
  arXiv:2110.06296). Zero where there is no bump, however different the ends.
  """
  return float(np.max(losses - np.linspace(losses[0], losses[-1], len(losses))))


def distance(a: Variables, b: Variables) -> float:
  """|a - b| over all parameters of two networks."""
  return float(
    optax.tree.norm(jax.tree.map(lambda x, y: jnp.asarray(x) - y, a["params"], b["params"]))
  )


def analyse(
  subjects: Sequence[Subject],
  *,
  images: int = 1000,
  split: str = "train",
  seed: int = 0,
  batch: int = 250,
  points: int = 11,
  snapshots: int = 20,
  partial_dir: str | os.PathLike[str] | None = None,
) -> Finding:
  """Distance and barrier between every two students of each run over training: `Finding`.

  snapshots: at most so many, evenly spaced.
  """
  rows, numbers, curves, scalars = [], {}, {}, {}
  for subject in subjects:
    trajectory = subject.trajectory(snapshots)
    steps = list(trajectory)
    names = students(trajectory[steps[0]])
    if len(names) < 2:
      raise ValueError(
        f"{subject.run.path} trains one network; a barrier lies between two students"
      )
    rows_there = [trajectory[step][name] for step in steps for name in names]
    networks = jax.tree.map(lambda *leaves: np.stack(leaves), *rows_there)
    couples = list(itertools.combinations(range(len(names)), 2))
    pairs = [
      (s * len(names) + a, s * len(names) + b) for s in range(len(steps)) for a, b in couples
    ]
    pictures = subject.images(images, split=split, seed=seed, batch=batch)
    values, speed = between(
      subject.net,
      networks,
      pairs,
      pictures,
      points=points,
      partial_dir=partial_dir,
      title=f"barrier {subject.name}",
    )
    epochs = [step / subject.epoch_steps for step in steps]
    heights = {
      mode: np.array([height(line) for line in values[f"{mode}_loss"]]).reshape(len(steps), -1)
      for mode in ("mixed", "reestimated")
    }
    apart = np.array([distance(rows_there[i], rows_there[j]) for i, j in pairs])
    sizes = np.array([float(optax.tree.norm(row["params"])) for row in rows_there])
    relative = apart / np.array([(sizes[i] + sizes[j]) / 2 for i, j in pairs])
    apart, relative = apart.reshape(len(steps), -1), relative.reshape(len(steps), -1)
    numbers[subject.name] = {
      "epochs": epochs,
      "pairs": [f"{names[a]}, {names[b]}" for a, b in couples],
      "distance": apart,
      "relative_distance": relative,
      "barrier_mixed": heights["mixed"],
      "barrier_reestimated": heights["reestimated"],
      "lines": values,
      "images": pictures.label.size,
    }
    curves[subject.name] = {
      "x": epochs,
      "distance": relative.mean(1),
      "mixed": heights["mixed"].mean(1),
      "reestimated": heights["reestimated"].mean(1),
    }
    for c, pair in enumerate(numbers[subject.name]["pairs"]):
      rows.append(
        (
          subject.name,
          pair,
          epochs[-1],
          apart[-1, c],
          relative[-1, c],
          heights["reestimated"][-1, c],
          heights["mixed"][-1, c],
        )
      )
    scalars[subject.name] = {
      "distance": apart[-1].mean(),
      "relative_distance": relative[-1].mean(),
      "barrier_reestimated": heights["reestimated"][-1].mean(),
      "barrier_mixed": heights["mixed"][-1].mean(),
    }
  headers = (
    "run",
    "students",
    "epoch",
    "distance",
    "distance / norm",
    "barrier, re-estimated",
    "barrier, as mixed",
  )
  panels = {
    "distance": ("distance between students / their norm", False),
    "reestimated": ("barrier, statistics re-estimated [nats]", False),
    "mixed": ("barrier, statistics as mixed [nats]", False),
  }
  figure = figures.lines(panels, merged(curves), xlabel="epoch")
  notes = (
    "Barrier: how far the cross-entropy rises above the straight line of its ends, in nats; "
    "curves are means over the pairs of students.",
    speed_note(speed, 3 * pictures.label.size, subject.net, rows_there[-1], pictures),
  )
  return Finding(headers, rows, numbers, figure, notes, scalars)
