"""The two losses of distillation over training, and how their gradients agree.

The objective of every method here is a task loss on the labels and a distillation loss on what
teaches it (`core.Terms`). For kd and DOT (Zhao et al., ICCV 2023, arXiv:2307.08436) the claim
to test is that distillation by plain SGD ends at a higher task loss, and that DOT lowers both.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from okdph_jax.analysis import figures
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.points import mean_of_calls
from okdph_jax.analysis.progress import Progress
from okdph_jax.analysis.replicates import merged
from okdph_jax.analysis.subject import Subject
from okdph_jax.core import Batch, Learner, Views
from okdph_jax.methods.gradient_cosine import cosine
from okdph_jax.methods.protocol import Method
from okdph_jax.runtime import host
from okdph_jax.training.step import Augment


def term_gradients(
  method: Method, augment: Augment, learner: Learner, key: Key[Array, ""], batch: Batch
) -> tuple[dict[str, Float[Array, ""]], dict[str, PyTree]]:
  """The terms "task" and "distill" of a learner's loss on one batch, and their gradients.

  Training views and batch statistics, as in a step.
  """
  views = Views(augment(key, batch.image), batch.label)

  def terms(params):
    found, _ = method.losses(learner.replace(params=params), views, jnp.int32(0), key)
    return found

  values, pull = jax.vjp(terms, learner.params)
  unit, none = jax.tree.map(jnp.ones_like, values), jax.tree.map(jnp.zeros_like, values)
  (task,) = pull(none._replace(task=unit.task))
  (distill,) = pull(none._replace(distill=unit.distill))
  return values._asdict(), {"task": task, "distill": distill}


def analyse(
  subjects: Sequence[Subject], *, images: int = 1000, seed: int = 0, batch: int = 128
) -> Finding:
  """Both losses, their trade-off, and cosines between gradients and updates: `Finding`.

  At every snapshot: the cosine of the two gradients, and of each (downhill) with the way to the
  next snapshot. The losses are the run's own, means over training since its last evaluation;
  kd's are unweighted.
  """
  rows, numbers, curves, scalars = [], {}, {}, {}
  for subject in subjects:
    if len(subject.steps()) < 2:
      raise ValueError(
        f"{subject.run.path} has one snapshot; updates lie between two, so train it further"
      )
  total = sum(len(subject.steps()) - 1 for subject in subjects)
  with Progress("dot", total, "snapshot") as bar:
    for subject in subjects:
      found = _over_training(subject, images, seed, batch, bar)
      losses = _logged(subject)
      numbers[subject.name] = {"gradients": found, "losses": losses}
      curves[subject.name] = losses | {
        "snapshot": found["epoch"],
        "task_distill": found["task_distill"],
      }
      scalars[subject.name] = {
        "task_loss": losses["task"][-1],
        "distillation_loss": losses["distill"][-1],
        "test_accuracy": max(subject.lines[-1]["accuracy"]["test"].values()),
      } | {
        name: np.nanmean(found[name])
        for name in ("task_distill", "task_update", "distill_update")
      }
      rows.append((subject.name, *scalars[subject.name].values()))
  headers = (
    "run",
    "task loss",
    "distillation loss",
    "test accuracy, best reader",
    "cos(task, distill)",
    "cos(task, update)",
    "cos(distill, update)",
  )
  notes = (
    "Losses at the last evaluation; cosines are means over the snapshots.",
    f"{bar.speed()}, two gradients of at most {images} images each",
  )
  return Finding(headers, rows, numbers, _draw(merged(curves)), notes, scalars)


def _logged(subject):
  """The two losses over training, as the logbook has them."""
  names = {"task": "label_loss", "distill": "teacher_loss"}
  return {"epoch": [line["epoch"] for line in subject.lines]} | {
    term: [line["losses"].get(kd, line["losses"][term]) for line in subject.lines]
    for term, kd in names.items()
  }


def _over_training(subject, images, seed, batch, bar):
  experiment = subject.experiment
  pictures = subject.raw_images(images, seed=seed, batch=batch)
  key = jax.random.key(seed)

  one = jax.jit(
    functools.partial(term_gradients, experiment.method, experiment.augment),
    compiler_options=host.compiler_options(),
  )

  def measured(learner, way):
    values, gradients = mean_of_calls(functools.partial(one, learner, key), pictures)
    downhill = jax.tree.map(jnp.negative, gradients)
    return values | {
      "task_distill": cosine(gradients["task"], gradients["distill"]),
      "task_update": cosine(downhill["task"], way),
      "distill_update": cosine(downhill["distill"], way),
    }

  steps = subject.steps()
  learners = [subject.trained(step) for step in steps]
  found = []
  for now, after in itertools.pairwise(learners):
    way = jax.tree.map(lambda a, b: jnp.asarray(b) - a, now.params, after.params)
    found.append(jax.device_get(measured(now, way)))
    bar.update()
  epochs = [step / subject.epoch_steps for step in steps[:-1]]
  return {"epoch": epochs} | {
    name: np.array([values[name] for values in found], np.float64) for name in found[0]
  }


@figures.styled
def _draw(curves):
  figure, axes = figures.new(2, 2, width=2.7, height=2.2)
  task, distill, trade, angle = axes.flat
  for i, (name, curve) in enumerate(curves.items()):
    style = dict(color=figures.color(i), marker=figures.marker(i), markersize=3)
    for axis, x, measure in (
      (task, "epoch", "task"),
      (distill, "epoch", "distill"),
      (angle, "snapshot", "task_distill"),
    ):
      error = curve.get(f"{measure}_error")
      label = name if axis is task else None
      axis.errorbar(curve[x], curve[measure], error, capsize=2, label=label, **style)
    trade.plot(curve["task"], curve["distill"], **style | {"linewidth": 0.6})
    last = style | {"markersize": 7, "mec": "black"}
    trade.plot(curve["task"][-1:], curve["distill"][-1:], **last)
  task.set(xlabel="epoch", ylabel="task loss, training [nats]")
  distill.set(xlabel="epoch", ylabel="distillation loss, training [nats]")
  trade.set(xlabel="task loss [nats]", ylabel="distillation loss [nats]")
  angle.set(xlabel="epoch", ylabel="cosine of the two gradients", ylim=(-1.05, 1.05))
  figure.legend(loc="outside lower center", ncols=min(len(curves), 4))
  return figure
