"""The loop: from the latest checkpoint, or the start, to the last evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from okdph_jax.core import Batch, Learner
from okdph_jax.data import Dataset
from okdph_jax.durations import clock
from okdph_jax.methods.protocol import Metrics
from okdph_jax.runtime import distributed, host, memory
from okdph_jax.runtime.signals import Interrupted, stop_before_the_first_step
from okdph_jax.training import logbook
from okdph_jax.training.checkpoint import Checkpoints
from okdph_jax.training.compile import Advance, background, compile_steps
from okdph_jax.training.evaluate import Measured, evaluator
from okdph_jax.training.feed import feed
from okdph_jax.training.progress import Progress
from okdph_jax.training.step import State
from okdph_jax.training.timer import StepTimer

if TYPE_CHECKING:  # plain training needs no ml_collections
  from ml_collections import ConfigDict

PREDICT_AFTER = 20  # steps, once nothing compiles beside them, that tell how long the run takes


def train(
  config: ConfigDict,
  run: Any,
  dataset: Dataset,
  experiment: Any,
  interrupted: Callable[[], bool],
  extended: dict[str, Any],
) -> float | None:
  """Trains to the end, from the latest checkpoint or the start: FLOPs of a step per image.

  run: an `okdph_jax.Run`. experiment: what `experiment.build` makes of the config.
  interrupted: whether to stop as soon as possible, with a checkpoint and `Interrupted`.
  extended: entries for the lines of a run that is extended.
  """
  mesh = host.mesh(config.devices, config.student_groups)
  place = NamedSharding(mesh, PartitionSpec())
  key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=place)()
  fed = feed(config, dataset, experiment.augment, experiment.method.views, mesh)
  with (
    background() as thread,
    run.checkpoints() as checkpoints,
    logbook.Logbook(run) as book,
  ):
    program = experiment.parts, experiment.numbers, fed.augment
    compiled = compile_steps(
      *program,
      fed.shapes,
      key,
      thread,
      per_dispatch=config.steps_per_dispatch,
      accumulate=config.accumulate,
    )
    print(f"compiled in {compiled.seconds:.1f} s", flush=True)
    stop_before_the_first_step(interrupted)
    state = checkpoints.restore(compiled.state) or compiled.state
    step = int(state.step)
    with Progress(step, experiment.steps) as progress:
      measure = evaluator(
        dataset, experiment, fed.images, key, state.learner, interrupted, thread
      )
      session = Session(
        config=config,
        run=run,
        experiment=experiment,
        extended=extended,
        key=key,
        batch=fed.batch,
        advance=compiled.advance,
        measure=measure,
        all_compiled=thread.submit(memory.return_freed).done,  # the last thing that it does
        interrupted=interrupted,
        checkpoints=checkpoints,
        book=book,
        progress=progress,
        state=state,
        step=step,
      )
      try:
        session.begin()
        while session.step < experiment.steps:
          session.run_to(session.next_stop())
          session.look()
          session.stop_if_interrupted()
          if session.due():
            session.evaluate()
          else:
            session.save_now_and_then()
      except Interrupted:
        session.save()
        raise
    return compiled.flops.result()


@dataclasses.dataclass
class Session:
  """What the loop does at its stops; `state` and `step` are where it is."""

  config: ConfigDict
  run: Any
  experiment: Any
  extended: dict[str, Any]
  key: Key[Array, ""]
  batch: Callable[[int], Batch]  # of a step
  advance: Advance
  measure: Callable[[Learner], tuple[Measured, Measured, Learner]]  # see `evaluator`
  all_compiled: Callable[[], bool]  # whether the steps have the machine to themselves
  interrupted: Callable[[], bool]
  checkpoints: Checkpoints
  book: logbook.Logbook
  progress: Progress
  state: State
  step: int

  def __post_init__(self):
    epoch = self.experiment.epoch_steps
    self._evaluate_every = self.config.eval_every_epochs * epoch
    self._snapshot_every = self.config.snapshots * epoch  # 0: never
    self._looked = self.step
    self._forecast_at = None  # the step; unknown while programs compile beside the steps
    self._logged = []  # (step, metrics on the device) since the last look
    self._stride = 1  # steps to the next look

  def begin(self) -> None:
    """Brings the files to the step of the checkpoint; evaluates it where that is missing."""
    missing = self.step and self.due() and int(self.state.sums["steps"])
    with distributed.leader_first():  # a line belongs to its checkpoint: it is written again
      self.run.cut_after(self.step, evaluated=not missing)
    lines = self.run.lines
    lost = {*range(0, self.step + 1, self._evaluate_every)} - {0, *(x["step"] for x in lines)}
    missing = missing or self.step in lost
    if earlier := sorted(lost - {self.step}):
      self.progress.say(
        f"metrics.jsonl has lost {len(earlier)} evaluations, of steps {earlier[0]} to "
        f"{earlier[-1]}: the result is made of the others"
      )
    self.timer = StepTimer(lines[-1]["seconds"] if lines else 0.0)
    if self.step:
      self.progress.say(f"going on from step {self.step}")
    else:
      self.keep_snapshot()
    if missing:
      self.evaluate()
    self.timer.start()

  def due(self) -> bool:
    """Whether this is a step to evaluate."""
    return self.step % self._evaluate_every == 0 or self.step == self.experiment.steps

  def next_stop(self) -> int:
    """The step to run to: the next look, evaluation or snapshot."""
    stops = [self._looked + self._stride, self.experiment.steps]
    for every in filter(None, (self._evaluate_every, self._snapshot_every)):
      stops.append((self.step // every + 1) * every)
    return min(stops)

  def run_to(self, stop: int) -> None:
    """Dispatches the steps up to `stop`, several at once where they fit and are all full."""
    while self.step < stop:
      count, epoch = self.config.steps_per_dispatch, self.experiment.epoch_steps
      if self.step + count > min(stop, self.step // epoch * epoch + epoch - 1):
        count = 1  # the last batch of an epoch may be short
      batches = tuple(self.batch(step) for step in range(self.step, self.step + count))
      self.state, metrics = self.advance(self.state, batches, self.key)
      for batch, own in zip(batches, metrics, strict=True):
        self.step += 1
        self.timer.count(len(batch.label))
        if self.config.log_every_steps and self.step % self.config.log_every_steps == 0:
          self._logged.append((self.step, own))

  def look(self) -> None:
    """Waits for the steps so far and shows the loss; FloatingPointError if it is not finite."""
    self.log_training()
    means = self.mean_metrics()
    self._looked = self.step
    self.timer.tick()
    self._stride = distributed.broadcast_from_leader(self.timer.look_every())
    speed = self.timer.images_per_second()
    self.progress.update(self.step, **means, images_per_second=speed)
    self.forecast()
    if self._snapshot_every and self.step % self._snapshot_every == 0:
      self.keep_snapshot()

  def log_training(self) -> None:
    """Writes what `config.log_every_steps` asks for, before a checkpoint of the same step."""
    if self._logged:
      epoch, steps = self.experiment.epoch_steps, jax.device_get(self._logged)
      self.book.append_training((step, step / epoch, losses(sums)) for step, sums in steps)
      self._logged.clear()

  def mean_metrics(self) -> dict[str, float]:
    """Loss and accuracy, means since the last evaluation, or FloatingPointError."""
    sums, step = self.state.sums, self.step
    loss, accuracy, steps = (float(sums[name]) for name in ("loss", "accuracy", "steps"))
    if math.isfinite(loss):
      return {"loss": loss / max(steps, 1), "accuracy": accuracy / max(steps, 1)}
    kept = self.checkpoints.latest_step
    rate = float(self.experiment.schedule(step - 1))
    raise FloatingPointError(
      f"the loss became NaN or infinite between steps {self._looked} and {step}, at learning "
      f"rate {rate:g}; lower config.learning_rate (or omega and beta) and start in another "
      "--workdir; "
      + (
        f"the last good checkpoint, of step {kept}, is kept"
        if kept
        else "there is no checkpoint"
      )
    )

  def forecast(self) -> None:
    """Says once how long the rest of the run will take, when nothing compiles beside it."""
    if self._forecast_at is None and self.all_compiled():
      self._forecast_at = self.step + PREDICT_AFTER
      self.timer.forget()
      self.progress.pace_from(self.step)
    if self._forecast_at is None or self.step < self._forecast_at:
      return
    self._forecast_at = math.inf
    seconds, left = self.timer.step_seconds(), self.experiment.steps - self.step
    self.progress.say(
      f"{seconds:.3f} s per step: about {clock(seconds * left)} left, without the time of "
      f"{-(-left // self._evaluate_every)} evaluations"
    )

  def stop_if_interrupted(self) -> None:
    if self.interrupted():
      raise Interrupted(
        f"interrupted: {self.run.path} has a checkpoint; the same command resumes the run"
      )

  def evaluate(self) -> None:
    """Measures, writes the line and its checkpoint, and resets the sums."""
    accuracy, nll, evaluated = self.measure(self.state.learner)
    line = self.book.append(
      step=self.step,
      epoch=self.step / self.experiment.epoch_steps,
      learning_rate=float(self.experiment.schedule(self.step - 1)),
      losses=losses(self.state.sums),
      accuracy=accuracy,
      cross_entropy=nll,
      seconds=self.timer.seconds(),
      images_per_second=self.timer.images_per_second(),
      **self.extended,
    )
    self.state = self.state.replace(
      sums=jax.tree.map(lambda x: x * 0, self.state.sums),
      # what was estimated for this evaluation is in the checkpoint, to be loaded
      learner=self.state.learner.replace(memory=evaluated.memory),
    )
    self.save(logbook.best_single(line, self.experiment.single)[0])
    self.progress.say(readable(line))
    self.timer.start()

  def save_now_and_then(self) -> None:
    """Saves where `config.checkpoint_every_minutes` have passed since the last save."""
    minutes = self.config.checkpoint_every_minutes
    if distributed.broadcast_from_leader(self.timer.minutes_since_save() > minutes):
      self.save()
      self.timer.saved()

  def save(self, accuracy: float | None = None) -> None:
    self.checkpoints.save(self.step, self.state, accuracy)

  def keep_snapshot(self) -> None:
    if self.config.snapshots:
      self.run.snapshot(self.step, self.state.learner)


def losses(sums: Metrics) -> dict[str, float]:
  """Means of the metrics that were summed over sums["steps"] steps; NaN of none."""
  totals = {name: float(total) for name, total in sums.items()}
  steps = totals.pop("steps")
  return {name: total / (steps or math.nan) for name, total in totals.items()}


def readable(line: dict[str, Any]) -> str:
  """An evaluation in one line, as the run prints it."""
  splits = (
    f"{split} " + ", ".join(f"{reader} {value:.4f}" for reader, value in readers.items())
    for split, readers in line["accuracy"].items()
  )
  loss = line["losses"]["loss"]
  shown = "unknown" if loss is None else f"{loss:.4f}"  # where its line was lost
  return f"epoch {line['epoch']:g}: loss {shown}; " + "; ".join(splits)
