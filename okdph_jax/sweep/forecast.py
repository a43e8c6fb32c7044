"""Predicts the steps, FLOPs and time of a sweep; compiles one step for each network."""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tabulate import tabulate
from tqdm import tqdm

from okdph_jax import data, models
from okdph_jax.core import Batch
from okdph_jax.data import Dataset
from okdph_jax.durations import clock
from okdph_jax.experiment.build import Experiment, build, configure_jax
from okdph_jax.nn.students import start
from okdph_jax.runtime import host
from okdph_jax.sweep.cells import Cell
from okdph_jax.sweep.runner import slots, unfinished
from okdph_jax.trained_network import TrainedNetwork
from okdph_jax.training.compile import background, compile_steps, flops_of
from okdph_jax.training.feed import feed
from okdph_jax.training.step import initial_state, train_step

WARM_UP = 2  # steps that are not timed
TIMED, SECONDS = 3, 5.0  # at least so many steps are timed, for at least so long

NOTES = """\
FLOPs: of all training steps and evaluations, from XLA's cost analysis. time: these FLOPs at the
speed of a training step measured on this machine, once for each network; without compiling,
reading data, and what swa and reestimate compute before an evaluation."""


class Cost(NamedTuple):
  """The predicted cost of one run."""

  steps: int
  flops: float | None  # None if JAX has no cost analysis
  seconds: float | None


def table(cells: Sequence[Cell], jobs: int, sweep: Sequence[Cell] = ()) -> str:
  """A row for each entry with the cost of one of its runs, and one for all unfinished runs.

  sweep: all cells of the sweep, if the teachers of these are others.
  """
  if cores := slots(jobs)[0].cores:
    os.sched_setaffinity(0, cores)  # as many as each run will have
  forecaster = Forecaster(sweep or cells)
  to_do = [cell.entry for cell in unfinished(cells)]
  rows, costs, notes = [], [], []
  for entry in tqdm(
    dict.fromkeys(c.entry for c in cells), "forecast", leave=False, disable=None
  ):
    own = [cell for cell in cells if cell.entry == entry]
    row, count = [entry, f"{to_do.count(entry)} of {len(own)}"], to_do.count(entry)
    try:
      steps, flops, seconds = forecaster.cost(own[0])
      row += [f"{steps:,}", flops and f"{flops:.3g}", seconds and clock(seconds)]
      costs.append((count * steps, count * (flops or 0), count * (seconds or 0)))
    except ValueError as error:  # the data are missing
      notes.append(f"{entry}: {error}")
    rows.append(row)
  steps, flops, seconds = (
    (sum(column) for column in zip(*costs, strict=True)) if costs else (0,) * 3
  )
  rows.append(
    [
      "all",
      f"{len(to_do)} of {len(cells)}",
      f"{steps:,}",
      f"{flops:.3g}",
      clock(seconds / jobs),
    ]
  )
  headers = ("runs", "to do", "steps", "FLOPs", "time" + f", {jobs} at a time" * (jobs > 1))
  align = ("left", "right", "right", "right", "right")
  text = tabulate(rows, headers, colalign=align, disable_numparse=True)
  return "\n".join([text, *notes, NOTES])


class Forecaster:
  """Predicts the `Cost` of cells; reads each dataset, and traces each program, only once."""

  def __init__(self, cells: Sequence[Cell]):
    self._configs = {cell.run.path: cell.config for cell in cells}
    self._read = functools.cache(lambda key: data.load(self._config_of[key]))
    self._config_of: dict[str, ConfigDict] = {}
    self._flops: dict[str, tuple[float | None, float | None]] = {}
    self._speed: dict[Any, float] = {}  # FLOPs per second of a step
    configure_jax(cells[0].config)

  def cost(self, cell: Cell) -> Cost:
    """The `Cost` of the run of a cell; ValueError if its data are missing.

    All generations of a run count as much as those that have a teacher.
    """
    config = cell.config
    dataset = self._dataset(config)
    experiment = build(config, dataset, taught_by=self._stand_in(cell, dataset))
    program = same_program(config)
    if program not in self._flops:
      self._flops[program] = flops(experiment, config, dataset)
    step, evaluation = self._flops[program]
    steps = config.generations * experiment.steps
    if step is None or evaluation is None:
      return Cost(steps, None, None)
    images = len(dataset.train) * config.epochs
    tests = len(dataset.test) + len(dataset.validation or ())
    evaluations = -(-config.epochs // config.eval_every_epochs)
    whole = config.generations * (step * images + evaluation * tests * evaluations)
    if (kind := (config.network, dataset.image_shape)) not in self._speed:
      rate = step * config.batch_size / step_seconds(experiment, config, dataset)
      self._speed[kind] = rate
    return Cost(steps, whole, whole / self._speed[kind])

  def _dataset(self, config):
    key = json.dumps(config.data.to_dict(), sort_keys=True)
    self._config_of[key] = config
    return self._read(key)

  def _stand_in(self, cell: Cell, dataset: Dataset) -> TrainedNetwork | None:
    """An untrained network in place of a teacher that will be trained first."""
    if not cell.teacher and cell.config.generations == 1:
      return None
    config = self._configs[cell.teacher.path] if cell.teacher else cell.config
    net = models.build(config.network, dataset.classes, config.network_options)
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda key: start(net, key, image), jax.random.key(0))
    variables = jax.tree.map(lambda x: np.broadcast_to(x.dtype.type(0), x.shape), shapes)
    names, shape = dataset.class_names, dataset.image_shape
    return TrainedNetwork(
      net, variables, names, shape, dataset.mean, dataset.std, "plain", "not trained yet"
    )


def same_program(config: ConfigDict) -> str:
  """A key that is equal for configs with the same FLOPs: without floats other than 0 and 1."""

  def structure(value: Any) -> Any:
    if isinstance(value, dict):
      return {name: structure(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
      return [structure(inner) for inner in value]
    return "number" if isinstance(value, float) and value not in (0, 1) else value

  options = structure(config.to_dict())
  for name in ("seed", "epochs", "milestones", "teacher"):
    del options[name]
  return json.dumps(options, sort_keys=True)


def flops(
  experiment: Experiment, config: ConfigDict, dataset: Dataset
) -> tuple[float | None, float | None]:
  """FLOPs per image of (a training step, an evaluation); None if JAX has no cost analysis.

  An evaluation is counted without its ensembles, which are computed from the logits of
  networks that it runs anyway.
  """
  size, key = config.batch_size, jax.random.key(0)
  image: Any = jax.ShapeDtypeStruct((size, *dataset.image_shape), jnp.uint8)
  label: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
  batch = Batch(image, label)
  method, tx = experiment.parts(experiment.numbers)
  parts = method, tx, experiment.augment
  state = jax.eval_shape(lambda key: initial_state(*parts, batch, key), key)
  step = functools.partial(train_step, *parts, accumulate=config.accumulate)

  view = jax.ShapeDtypeStruct(image.shape, jnp.float32)
  programs = (step, (state, batch, key)), (method.predict, (state.learner, view))
  found = [flops_of(jax.jit(f).trace(*given), f, *given) for f, given in programs]
  training, test = (total and total / size for total in found)
  return training, test


def step_seconds(experiment: Experiment, config: ConfigDict, dataset: Dataset) -> float:
  """The median time of a training step, compiled and run here."""
  mesh = host.mesh(config.devices)
  place = NamedSharding(mesh, PartitionSpec())
  key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=place)()
  fed = feed(config, dataset, experiment.augment, experiment.method.views, mesh)
  full, batch = next(iter(fed.shapes)), fed.batch(0)
  with background() as thread:
    program = experiment.parts, experiment.numbers, fed.augment, {full: fed.shapes[full]}
    compiled = compile_steps(*program, key, thread, accumulate=config.accumulate)
    compiled.flops.result()  # the thread's last task: nothing else runs during the steps
    state, times = compiled.state, []
    while len(times) < WARM_UP + TIMED or sum(times[WARM_UP:]) < SECONDS:
      began = time.monotonic()
      state, _ = compiled.advance(state, (batch,), key)
      jax.block_until_ready(state)
      times.append(time.monotonic() - began)
  return statistics.median(times[WARM_UP:])
