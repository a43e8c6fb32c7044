"""The training loop: from the latest checkpoint, or the start, to the last evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
from okdph_jax.training.compile import Advance, background, compile_steps, images
from okdph_jax.training.evaluate import Measured, compiled_counter, evaluator
from okdph_jax.training.feed import Feed, feed
from okdph_jax.training.progress import Progress
from okdph_jax.training.stack import Stack
from okdph_jax.training.step import State
from okdph_jax.training.timer import StepTimer

if TYPE_CHECKING:  # plain training needs no ml_collections
  from ml_collections import ConfigDict

PREDICT_AFTER = 20  # steps, after all compilations, from which the time left is predicted


class Job(NamedTuple):
  """A run to be trained."""

  config: ConfigDict
  run: Any  # an `okdph_jax.Run`
  dataset: Dataset


class Diverged(FloatingPointError):
  """The loss became NaN or infinite."""

  def __init__(self, message: str, runs: Sequence[Any]):
    super().__init__(message)
    self.runs = runs  # those whose loss it is


def train(
  jobs: Sequence[Job],
  experiment: Any,
  interrupted: Callable[[], bool],
  extended: dict[str, Any],
) -> float | None:
  """Trains to the end, from the latest checkpoint or the start; the FLOPs of a step per image.

  jobs: one run, or several that differ only in their seeds, to be trained as one program.
  experiment: an `experiment.build.Experiment` of their config.
  interrupted: whether to stop at the next step, with a checkpoint and `Interrupted`.
  extended: entries for the lines of metrics.jsonl if the run is extended.
  """
  config, views = jobs[0].config, experiment.method.views
  mesh = host.mesh(config.devices, config.student_groups)
  place = NamedSharding(mesh, PartitionSpec())
  seeds = [job.config.seed for job in jobs]
  keys = [jax.jit(lambda s=s: jax.random.key(s), out_shardings=place)() for s in seeds]
  feeds = [feed(job.config, job.dataset, experiment.augment, views, mesh) for job in jobs]
  key, batch = keys[0], feeds[0].batch
  if len(jobs) > 1:
    key = jax.jit(lambda *keys: jnp.stack(keys), out_shardings=place)(*keys)
    batch = batch_of_each(feeds)
  stack = Stack.of(len(jobs), place)
  with background() as thread, contextlib.ExitStack() as opened:
    checkpoints = [opened.enter_context(job.run.checkpoints()) for job in jobs]
    books = [opened.enter_context(logbook.Logbook(job.run)) for job in jobs]
    common = common_step(jobs, checkpoints)
    program = experiment.parts, experiment.numbers, feeds[0].augment
    compiled = compile_steps(
      *program,
      feeds[0].shapes,
      key,
      thread,
      per_dispatch=config.steps_per_dispatch,
      accumulate=config.accumulate,
    )
    print(f"compiled in {compiled.seconds:.1f} s", flush=True)
    stop_before_the_first_step(interrupted)
    one = stack.split(compiled.state)[0]
    states = restored(jobs, checkpoints, one, common)
    state = compiled.state if states is None else stack.join(states)
    count = compiled_counter(experiment)
    members = [
      Member(
        run=job.run,
        measure=evaluator(
          count, job.dataset, experiment, fed.images, key, one.learner, interrupted, thread
        ),
        checkpoints=saved,
        book=book,
      )
      for job, fed, key, saved, book in zip(jobs, feeds, keys, checkpoints, books, strict=True)
    ]
    step = int(state.step)
    with Progress(step, experiment.steps) as progress:
      session = Session(
        config=config,
        members=members,
        stack=stack,
        experiment=experiment,
        extended=extended,
        key=key,
        batch=batch,
        advance=compiled.advance,
        all_compiled=thread.submit(memory.return_freed).done,  # the thread's last task
        interrupted=interrupted,
        progress=progress,
        state=state,
        step=step,
      )
      session.run()
    return compiled.flops.result()


def batch_of_each(feeds: Sequence[Feed]) -> Callable[[int], tuple[Batch, ...]]:
  """`batch(step)` of several runs: a tuple with the batch of each."""

  def batch(step):
    return tuple(fed.batch(step) for fed in feeds)

  return batch


def common_step(jobs: Sequence[Job], checkpoints: Sequence[Checkpoints]) -> int | None:
  """The latest step of which all runs have a checkpoint; None if no run has any."""
  steps = [saved.steps for saved in checkpoints]
  common = set.intersection(*steps)
  if any(steps) and not common:
    raise apart(jobs, [max(own, default=0) for own in steps])
  return max(common, default=None)


def restored(
  jobs: Sequence[Job], checkpoints: Sequence[Checkpoints], state: State, until: int | None
) -> list[State] | None:
  """The states on disk, all of one step, see `Checkpoints.restore`; None if there are none."""
  states = [saved.restore(state, until) for saved in checkpoints]
  found = [state for state in states if state is not None]
  if not found:
    return None
  steps = [0 if state is None else int(state.step) for state in states]
  if len(set(steps)) > 1:  # some were damaged
    raise apart(jobs, steps)
  for saved in checkpoints:
    saved.discard_after(steps[0])
  return found


def apart(jobs: Sequence[Job], steps: Sequence[int]) -> ValueError:
  """The error if the runs' latest checkpoints are of different steps."""
  where = (f"{job.run.path} at {step}" for job, step in zip(jobs, steps, strict=True))
  return ValueError(
    "runs that are trained together must be at one step, but these are not: "
    f"{', '.join(where)}; train them one by one"
  )


class Member(NamedTuple):
  """One of the runs that a session trains."""

  run: Any
  measure: Callable[[Learner], tuple[Measured, Measured, Learner]]  # see `evaluator`
  checkpoints: Checkpoints
  book: logbook.Logbook


@dataclasses.dataclass
class Session:
  """The training loop of one process; `state` is the state after `step` steps."""

  config: ConfigDict
  members: Sequence[Member]  # one run, or several as one program
  stack: Stack
  experiment: Any
  extended: dict[str, Any]
  key: Key[Array, " *runs"]
  batch: Callable[[int], Batch | tuple[Batch, ...]]  # of a step
  advance: Advance
  all_compiled: Callable[[], bool]  # whether all background compilations are done
  interrupted: Callable[[], bool]
  progress: Progress
  state: State
  step: int

  def __post_init__(self):
    epoch = self.experiment.epoch_steps
    self._evaluate_every = self.config.eval_every_epochs * epoch
    self._snapshot_every = self.config.snapshots * epoch  # 0: never
    self._looked = self.step
    self._forecast_at = None  # a step; unknown while programs compile in the background
    self._logged = []  # (step, metrics on the device) since the last look
    self._stride = 1  # steps to the next look
    self._seconds = [0.0] * len(self.members)  # of each run before this session

  def run(self) -> None:
    """Trains to the last step; if interrupted, saves a checkpoint and raises `Interrupted`."""
    try:
      self.begin()
      while self.step < self.experiment.steps:
        self.dispatch()
        self.look()
        self.stop_if_interrupted()
        if self.due():
          self.evaluate()
        else:
          self.save_now_and_then()
        self.keep_snapshot()
    except Interrupted:
      self.save()
      raise

  def begin(self) -> None:
    """Brings the files to the checkpoint's step, and makes its evaluation if it is missing."""
    states = self.stack.split(self.state)
    missing = [i for i, state in enumerate(states) if self.resume(i, state)]
    self.timer = StepTimer()
    if self.step:
      self.progress.say(f"resuming from step {self.step}")
    if missing:
      self.evaluate(missing)
    self.keep_snapshot()  # at the start, or if the run was stopped before it
    self.timer.start()

  def resume(self, i: int, state: State) -> bool:
    """Brings the files of run i to this state; whether its evaluation is missing."""
    run = self.members[i].run
    missing = bool(self.step and self.due() and int(state.sums["steps"]))
    with distributed.leader_first():  # its evaluation will be written again
      run.cut_after(self.step, evaluated=not missing)
    lines = run.lines
    lost = {*range(0, self.step + 1, self._evaluate_every)} - {0, *(x["step"] for x in lines)}
    if earlier := sorted(lost - {self.step}):
      self.say(
        i,
        f"metrics.jsonl lacks {len(earlier)} evaluations, of steps {earlier[0]} to "
        f"{earlier[-1]}: the result is computed from the others",
      )
    self._seconds[i] = lines[-1]["seconds"] if lines else 0.0
    return missing or self.step in lost

  def say(self, i: int, line: str) -> None:
    """Prints a line about run i, with its name if there are several runs."""
    name = f"{self.members[i].run.path.name}: " if len(self.members) > 1 else ""
    self.progress.say(name + line)

  def due(self) -> bool:
    """Whether to evaluate after this step."""
    return self.step % self._evaluate_every == 0 or self.step == self.experiment.steps

  def next_stop(self) -> int:
    """The step of the next evaluation or snapshot, or the last one."""
    stops = [self.experiment.steps]
    for every in filter(None, (self._evaluate_every, self._snapshot_every)):
      stops.append((self.step // every + 1) * every)
    return min(stops)

  def dispatch(self) -> None:
    """Dispatches steps until the next look, `config.steps_per_dispatch` at a time if possible.

    They may go beyond the step at which a look is due, but not beyond `next_stop`.
    """
    look, stop = self._looked + self._stride, self.next_stop()
    while self.step < min(look, stop):
      count, epoch = self.config.steps_per_dispatch, self.experiment.epoch_steps
      if self.step + count > min(stop, self.step // epoch * epoch + epoch - 1):
        count = 1  # the last batch of an epoch may be short
      batches = tuple(self.batch(step) for step in range(self.step, self.step + count))
      self.state, metrics = self.advance(self.state, batches, self.key)
      for batch, own in zip(batches, metrics, strict=True):
        self.step += 1
        self.timer.count(images(batch))
        if self.config.log_every_steps and self.step % self.config.log_every_steps == 0:
          self._logged.append((self.step, own))

  def look(self) -> None:
    """Waits for the dispatched steps and shows the loss; `Diverged` if it is not finite."""
    self.log_training()
    means = self.mean_metrics()
    self._looked = self.step
    self.timer.tick()
    self._stride = distributed.broadcast_from_leader(self.timer.look_every())
    speed = len(self.members) * self.timer.images_per_second()
    self.progress.update(self.step, **means, images_per_second=speed)
    self.forecast()

  def log_training(self) -> None:
    """Writes training.jsonl, before a checkpoint of the same step is saved."""
    if self._logged:
      epoch, steps = self.experiment.epoch_steps, jax.device_get(self._logged)
      for i, member in enumerate(self.members):
        own = (
          (step, {n: np.atleast_1d(x)[i] for n, x in sums.items()}) for step, sums in steps
        )
        member.book.append_training((step, step / epoch, losses(sums)) for step, sums in own)
      self._logged.clear()

  def mean_metrics(self) -> dict[str, float]:
    """Loss and accuracy: means since the last evaluation and over the runs; or `Diverged`."""
    names = ("loss", "accuracy", "steps")
    loss, accuracy, steps = (
      np.atleast_1d(self.state.sums[name]).astype(float) for name in names
    )
    if np.isfinite(loss).all():
      means = {"loss": loss / np.maximum(steps, 1), "accuracy": accuracy / np.maximum(steps, 1)}
      return {name: float(mean.mean()) for name, mean in means.items()}
    lost = [m for m, x in zip(self.members, loss, strict=True) if not math.isfinite(x)]
    kept, rate = lost[0].checkpoints.latest_step, float(self.experiment.schedule(self.step - 1))
    whose = f" of {', '.join(m.run.path.name for m in lost)}" if len(self.members) > 1 else ""
    raise Diverged(
      f"the loss{whose} became NaN or infinite between steps {self._looked} and {self.step}, "
      f"at learning rate {rate:g}; lower config.learning_rate (or omega and beta) and start in "
      "another --workdir; "
      + (
        f"the last good checkpoint, of step {kept}, is kept"
        if kept
        else "there is no checkpoint"
      ),
      [m.run for m in lost],
    )

  def forecast(self) -> None:
    """Prints the predicted time left, once, when the background compilations are done."""
    if self._forecast_at is None and self.all_compiled():
      self._forecast_at = self.step + PREDICT_AFTER
      self.timer.forget()
      self.progress.pace_from(self.step)
    if self._forecast_at is None or self.step < self._forecast_at:
      return
    self._forecast_at = math.inf
    seconds, left = self.timer.step_seconds(), self.experiment.steps - self.step
    self.progress.say(
      f"{seconds:.3f} s per step: about {clock(seconds * left)} left, plus "
      f"{-(-left // self._evaluate_every)} evaluations"
    )

  def stop_if_interrupted(self) -> None:
    """Raises `Interrupted` after SIGTERM or SIGINT."""
    if self.interrupted():
      paths = [str(member.run.path) for member in self.members]
      several = len(paths) > 1
      have = "have a checkpoint each" if several else "has a checkpoint"
      raise Interrupted(
        f"interrupted: {', '.join(paths)} {have}; the same command resumes the run"
        + "s" * several
      )

  def evaluate(self, which: Sequence[int] | None = None) -> None:
    """Evaluates all runs, or those of `which`; writes their lines and checkpoints.

    Starts new sums of the training metrics.
    """
    states = self.stack.split(self.state)
    which = range(len(states)) if which is None else which
    measured = {i: self.members[i].measure(states[i].learner) for i in which}
    lines = {}
    for i, (accuracy, nll, evaluated) in measured.items():
      state = states[i]
      lines[i] = self.members[i].book.append(
        step=self.step,
        epoch=self.step / self.experiment.epoch_steps,
        learning_rate=float(self.experiment.schedule(self.step - 1)),
        losses=losses(state.sums),
        accuracy=accuracy,
        cross_entropy=nll,
        seconds=self._seconds[i] + self.timer.seconds(),
        images_per_second=self.timer.images_per_second(),
        **self.extended,
      )
      states[i] = state.replace(
        sums=jax.tree.map(lambda x: x * 0, state.sums),
        # the checkpoint has the statistics that were estimated for this evaluation
        learner=state.learner.replace(memory=evaluated.memory),
      )
    self.state = self.stack.join(states)
    single = self.experiment.single
    self.save({i: logbook.best_single(line, single)[0] for i, line in lines.items()})
    for i, line in lines.items():
      self.say(i, readable(line))
    self.timer.start()

  def save_now_and_then(self) -> None:
    """Saves if `config.checkpoint_every_minutes` have passed since the last save."""
    minutes = self.config.checkpoint_every_minutes
    if distributed.broadcast_from_leader(self.timer.minutes_since_save() > minutes):
      self.save()
      self.timer.saved()

  def save(self, accuracies: Mapping[int, float] | None = None) -> None:
    """Saves all runs, or only those of `accuracies`, {run: accuracy}, with their accuracy."""
    for i, state in enumerate(self.stack.split(self.state)):
      if accuracies is None or i in accuracies:
        accuracy = None if accuracies is None else accuracies[i]
        self.members[i].checkpoints.save(self.step, state, accuracy)

  def keep_snapshot(self) -> None:
    """Saves copies of the learners if `config.snapshots` asks for one at this step.

    After an evaluation, so that they have the statistics that were estimated for it.
    """
    if self._snapshot_every and self.step % self._snapshot_every == 0:
      for member, state in zip(self.members, self.stack.split(self.state), strict=True):
        member.run.snapshot(self.step, state.learner)


def losses(sums: Metrics) -> dict[str, float]:
  """The means of metrics that were summed over sums["steps"] steps; NaN if it is 0."""
  totals = {name: float(total) for name, total in sums.items()}
  steps = totals.pop("steps")
  return {name: total / (steps or math.nan) for name, total in totals.items()}


def readable(line: dict[str, Any]) -> str:
  """The line that a run prints for an evaluation."""
  splits = (
    f"{split} " + ", ".join(f"{reader} {value:.4f}" for reader, value in readers.items())
    for split, readers in line["accuracy"].items()
  )
  loss = line["losses"]["loss"]
  shown = "unknown" if loss is None else f"{loss:.4f}"  # no steps were summed
  return f"epoch {line['epoch']:g}: loss {shown}; " + "; ".join(splits)
