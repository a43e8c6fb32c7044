"""What a sweep will take: steps and FLOPs without compiling, time from measured steps."""

from __future__ import annotations

import functools
import json
import os
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
from okdph_jax.experiment.build import Experiment, build
from okdph_jax.nn.students import start
from okdph_jax.runtime import host
from okdph_jax.sweep.cells import Cell
from okdph_jax.sweep.runner import slots, unfinished
from okdph_jax.trained_network import TrainedNetwork
from okdph_jax.training.compile import background, compile_steps, flops_of
from okdph_jax.training.feed import feed
from okdph_jax.training.step import initial_state, train_step

WARM, TIMED = 2, 5  # steps before the clock runs, and of which the mean is taken

NOTES = """\
FLOPs: of all steps and evaluations, by XLA's cost analysis, without compiling. time: these
FLOPs at the speed of a step measured on this machine, one for each network; compiling, reading
data and what swa does before an evaluation come on top."""


class Cost(NamedTuple):
  """What one run takes."""

  steps: int
  flops: float | None  # None where JAX cannot tell
  seconds: float | None


def table(cells: Sequence[Cell], jobs: int) -> str:
  """A row for each entry with what one of its runs takes; then all that is left to do."""
  if cores := slots(jobs)[0].cores:
    os.sched_setaffinity(0, cores)  # as many as a run will have
  forecaster = Forecaster(cells)
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
    except ValueError as error:  # the data are not there
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
  """The `Cost` of cells; data are read, programs traced and steps measured once each."""

  def __init__(self, cells: Sequence[Cell]):
    self._networks = {cell.run.path: cell.config for cell in cells}
    self._read = functools.cache(lambda key: data.load(self._config_of[key]))
    self._config_of: dict[str, ConfigDict] = {}
    self._flops: dict[str, tuple[float | None, float | None]] = {}
    self._speed: dict[Any, float] = {}  # FLOPs per second of a step
    host.configure(cells[0].config.devices, cells[0].config.batch_size)

  def cost(self, cell: Cell) -> Cost:
    """Of one run of the cell; ValueError where its data are missing."""
    config = cell.config
    dataset = self._dataset(config)
    experiment = build(config, dataset, taught_by=self._stand_in(cell, dataset))
    program = same_program(config)
    if program not in self._flops:
      self._flops[program] = flops(experiment, config, dataset)
    step, evaluation = self._flops[program]
    if step is None or evaluation is None:
      return Cost(experiment.steps, None, None)
    images = len(dataset.train) * config.epochs
    tests = len(dataset.test) + len(dataset.validation or ())
    evaluations = -(-config.epochs // config.eval_every_epochs)
    whole = step * images + evaluation * tests * evaluations
    if (kind := (config.network, dataset.image_shape)) not in self._speed:
      rate = step * config.batch_size / step_seconds(experiment, config, dataset)
      self._speed[kind] = rate
    return Cost(experiment.steps, whole, whole / self._speed[kind])

  def _dataset(self, config):
    key = json.dumps(config.data.to_dict(), sort_keys=True)
    self._config_of[key] = config
    return self._read(key)

  def _stand_in(self, cell: Cell, dataset: Dataset) -> TrainedNetwork | None:
    """An untrained network in place of a teacher that the sweep will train first."""
    if not cell.teacher:
      return None
    config = self._networks[cell.teacher.path]
    net = models.build(config.network, dataset.classes, config.network_options)
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda key: start(net, key, image), jax.random.key(0))
    variables = jax.tree.map(lambda x: np.broadcast_to(x.dtype.type(0), x.shape), shapes)
    names, shape = dataset.class_names, dataset.image_shape
    return TrainedNetwork(
      net, variables, names, shape, dataset.mean, dataset.std, "plain", "not trained yet"
    )


def same_program(config: ConfigDict) -> str:
  """Equal for configs whose steps have the same FLOPs: numbers but 0 and 1 do not matter."""

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
  """(of a training step, of an evaluation), per image; None where JAX cannot tell."""
  size, key = config.batch_size, jax.random.key(0)
  image: Any = jax.ShapeDtypeStruct((size, *dataset.image_shape), jnp.uint8)
  label: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
  batch = Batch(image, label)
  method, tx = experiment.parts(experiment.numbers)
  parts = method, tx, experiment.augment
  state = jax.eval_shape(lambda key: initial_state(*parts, batch, key), key)
  step = functools.partial(train_step, *parts, accumulate=config.accumulate)

  def evaluation(learner, image):
    return method.predict(learner, image) | method.ensembles(learner, image)

  seen = jax.ShapeDtypeStruct(image.shape, jnp.float32)
  programs = (step, (state, batch, key)), (evaluation, (state.learner, seen))
  found = [flops_of(jax.jit(f).trace(*given), f, *given) for f, given in programs]
  training, test = (total and total / size for total in found)
  return training, test


def step_seconds(experiment: Experiment, config: ConfigDict, dataset: Dataset) -> float:
  """The mean time of a training step, compiled and run here."""
  mesh = host.mesh(config.devices)
  place = NamedSharding(mesh, PartitionSpec())
  key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=place)()
  fed = feed(config, dataset, experiment.augment, experiment.method.views, mesh)
  full, batch = next(iter(fed.shapes)), fed.batch(0)
  with background() as thread:
    program = experiment.parts, experiment.numbers, fed.augment, {full: fed.shapes[full]}
    compiled = compile_steps(*program, key, thread, accumulate=config.accumulate)
    compiled.flops.result()  # nothing else runs beside the steps
    state, began = compiled.state, 0.0
    for step in range(WARM + TIMED):
      if step == WARM:
        jax.block_until_ready(state)
        began = time.monotonic()
      state, _ = compiled.advance(state, (batch,), key)
    jax.block_until_ready(state)
  return (time.monotonic() - began) / TIMED
