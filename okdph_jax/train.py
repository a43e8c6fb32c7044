"""fit: the loop, from a config and a folder to a finished run."""

import contextlib
import functools
import importlib.metadata
import math
import os
import signal
import time

import jax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tabulate import tabulate

from okdph_jax import data, evaluate, host, logbook, pod
from okdph_jax.checkpoint import Checkpoints, snapshot
from okdph_jax.experiment import (
  build,
  check,
  environment,
  parameters,
  resolve,
  summary,
  writable,
)
from okdph_jax.nouns import Views
from okdph_jax.progress import Progress, duration
from okdph_jax.step import initial_state, train_step

FINISHED, INTERRUPTED = 0, 75  # exit codes; 75 is EX_TEMPFAIL: try again
LOOK_EVERY = 20  # steps, at most, between two looks at the loss; fewer where steps are slow
PREDICT_AFTER = 20  # steps of a session before it says how long the run will take
EVALUATION_BATCH = 500


class Interrupted(Exception):
  """SIGTERM or SIGINT came."""


def fit(config, workdir):
  """Trains what `config` says in the folder `workdir`, or goes on with it; the exit code.

  0 when the run is finished, now or before; 75 when SIGTERM or SIGINT stopped it and the
  same call goes on. Raises ValueError or OSError, in one line, for what cannot be run, and
  FloatingPointError where the loss is no longer a number.
  """
  with interruptible() as interrupted:
    check(config)
    host.configure(config.devices, config.batch_size)
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
      raise ValueError(f"this is one of {jax.process_count()} processes of a pod: add --pod")
    with pod.one_voice():
      for one, folder in generations(config, workdir):
        code = run(one, folder, interrupted)
        if code == INTERRUPTED:
          break
  return code


def generations(config, workdir):
  """The runs, (config, folder), of a config: one, or as many as there are generations.

  Self-distillation (Born-Again Networks, Furlanello et al., ICML 2018, arXiv:1805.04770):
  generation k starts afresh from the seed + k in workdir/generation_k, and the best network
  of generation k - 1 teaches it. The first learns from `config.teacher`, or where there is
  none from the labels alone.
  """
  if config.generations == 1:
    yield config, workdir
    return
  for k in range(config.generations):
    one = config.copy_and_resolve_references()
    one.generations, one.seed = 1, config.seed + k
    if k:
      one.teacher = os.path.join(workdir, f"generation_{k - 1}")
    elif not config.teacher:
      one.method = ConfigDict({"name": "base", "students": 1})
    yield one, os.path.join(workdir, f"generation_{k}")


def run(config, workdir, interrupted):
  """One run, from its beginning or its latest checkpoint; the exit code."""
  writable(workdir)
  with pod.leader_first():  # it may have to prepare them
    dataset = data.load(config)
  experiment = build(config, dataset)
  resolved = resolve(config, dataset, workdir)
  same_run(workdir, resolved)
  if result := logbook.read_result(workdir):
    print(f"{workdir} is finished; nothing to do\n{closing(result)}")
    return FINISHED
  logbook.write_config(workdir, resolved, environment())
  print(summary(config, dataset, experiment), flush=True)
  try:
    flops = train(config, workdir, dataset, experiment, interrupted)
  except Interrupted:
    print(f"interrupted: {workdir} holds a checkpoint; the same command goes on from there")
    return INTERRUPTED
  trained, deployed = parameters(experiment, dataset)
  result = logbook.result(
    logbook.lines(workdir),
    resolved,
    singles=experiment.single,
    students=config.method.get("students", 1),
    parameters=trained,
    parameters_deployed=deployed,
    flops_per_image=flops,
    version=importlib.metadata.version("okdph_jax"),
  )
  with pod.leader_first():  # another generation reads it
    logbook.write_result(workdir, result)
  print(f"{closing(result)}\nthe run is in {workdir}")
  return FINISHED


def train(config, workdir, dataset, experiment, interrupted):
  """The loop: from the latest checkpoint, or the start, to the last evaluation.

  Returns the FLOPs of a training step per image.
  """
  everywhere = NamedSharding(host.mesh(config.devices), PartitionSpec())
  key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=everywhere)()
  feed = dict(batch_size=config.batch_size, views=experiment.method.views, mesh=everywhere.mesh)
  batch = data.training(dataset.train_images, dataset.train_labels, seed=config.seed, **feed)
  shapes = data.shapes(dataset.train_images, **feed)
  state, advance, flops = compile_steps(experiment, shapes, key, everywhere)
  measure = evaluator(dataset, experiment, batch, key, everywhere.mesh, interrupted)
  every = config.eval_every_epochs * experiment.epoch_steps

  with Checkpoints(workdir) as checkpoints, logbook.Logbook(workdir) as book:
    state = checkpoints.restore(state) or state
    step = int(state.step)
    with pod.leader_first():
      logbook.cut_after(workdir, step)
    last = (logbook.lines(workdir) or [{"step": 0, "seconds": 0.0}])[-1]
    pace = Pace(last["seconds"])

    with Progress(step, experiment.steps) as progress:
      if step:
        progress.say(f"going on from step {step}")

      def evaluated(state):
        """Measures; writes the line and the checkpoint; returns the state, sums begun anew."""
        accuracy, nll = measure(state.learner)
        sums = {name: float(total) for name, total in state.sums.items()}
        line = book.append(
          step=step,
          epoch=step / experiment.epoch_steps,
          learning_rate=float(experiment.schedule(step - 1)),
          losses={n: total / sums["steps"] for n, total in sums.items() if n != "steps"},
          accuracy=accuracy,
          cross_entropy=nll,
          seconds=pace.seconds(),
          images_per_second=pace.images_per_second(),
        )
        state = state.replace(sums=jax.tree.map(lambda x: x * 0, state.sums))
        checkpoints.save(step, state, logbook.standing(line, experiment.single)[0])
        progress.say(readable(line))
        pace.start()
        return state

      try:
        if step > last["step"] and (step % every == 0 or step == experiment.steps):
          state = evaluated(state)
        pace.start()
        start = looked = step
        stride = 1  # steps to the next look
        while step < experiment.steps:
          current = batch(step)
          state, _ = advance[len(current.label)](state, current, key)
          step += 1
          pace.count(len(current.label))
          due = step % every == 0 or step == experiment.steps

          if due or step - looked >= stride or step - start == PREDICT_AFTER:
            means = look(state, looked, step, experiment, checkpoints)
            looked = step
            pace.tick()
            stride = pod.told(pace.look_every())
            progress.update(step, **means, images_per_second=pace.images_per_second())
          if step - start == PREDICT_AFTER:
            seconds = pace.step_seconds()
            progress.say(
              f"{seconds:.3f} s a step: about {duration(seconds * experiment.steps)} for the "
              f"whole run, {duration(seconds * (experiment.steps - step))} of it to go; "
              f"evaluations to come, not counted: {-(-(experiment.steps - step) // every)}"
            )
          if config.snapshots and step % (config.snapshots * experiment.epoch_steps) == 0:
            snapshot(workdir, step // experiment.epoch_steps, state.learner)
          if looked < step:
            continue
          if interrupted():
            raise Interrupted
          if due:
            state = evaluated(state)
          elif pod.told(pace.minutes_since_save() > config.checkpoint_every_minutes):
            checkpoints.save(step, state)
            pace.saved()
      except Interrupted:
        checkpoints.save(step, state)
        raise
  return flops


def compile_steps(experiment, shapes, key, everywhere):
  """The initial state, {batch size: compiled step} of the full and the short batch, FLOPs."""
  parts = experiment.method, experiment.tx, experiment.augment
  example = next(iter(shapes.values()))
  began = time.monotonic()
  state = jax.jit(
    lambda key: initial_state(*parts, example, key),
    out_shardings=everywhere,
    compiler_options=host.once_only(),
  )(key)
  step = jax.jit(
    functools.partial(train_step, *parts),
    donate_argnums=0,
    out_shardings=everywhere,
    compiler_options=host.compiler_options(),
  )
  traced = {size: step.trace(state, batch, key) for size, batch in shapes.items()}
  advance = {size: program.lower().compile() for size, program in traced.items()}
  seconds, size = time.monotonic() - began, len(example.label)
  flops = flops_of(traced[size], functools.partial(train_step, *parts), state, example, key)
  flops = flops and flops / size
  known = f"; {flops / 1e9:.3g} GFLOP per training image" if flops else ""
  print(f"compiled in {seconds:.0f} s{known}", flush=True)
  return state, advance, flops


def flops_of(traced, function, *arguments):
  """FLOPs of a traced program, all devices together; None where nobody can tell.

  By XLA's cost analysis of what is to be computed, before it is compiled: what a compiler
  computes twice, or hands to a library, does not change it, nor does how `convolution_cpu`
  puts a sum, because it is lowered as for another platform. Products with a convolution's
  padding do not count. JAX has the analysis for the CPU alone.
  """
  plain = {"lowering_platforms": ("tpu",)}
  cost = traced.lower(**plain).cost_analysis()
  if cost is None:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    try:
      with jax.default_device(jax.local_devices(backend="cpu")[0]):
        cost = jax.jit(function).trace(*shapes).lower(**plain).cost_analysis()
    except RuntimeError:  # JAX_PLATFORMS may leave the CPU out
      return None
  return cost["flops"]


def evaluator(dataset, experiment, batch, key, mesh, interrupted):
  """`measure(learner) -> (accuracy, cross-entropy)`, each {split: {reader: number}}."""
  count = evaluate.counter(experiment.method, experiment.look)
  augment = jax.jit(experiment.augment, compiler_options=host.compiler_options())
  splits = {"test": (dataset.test_images, dataset.test_labels)}
  if len(dataset.validation_labels):
    splits["validation"] = (dataset.validation_images, dataset.validation_labels)
  key_test, key_train = jax.random.split(jax.random.fold_in(key, 2**31 - 2))  # of no step

  def willing(batches):
    for item in batches:
      if interrupted():
        raise Interrupted
      yield item

  def training_views():
    for i in range(experiment.epoch_steps):
      yield Views(augment(jax.random.fold_in(key_train, i), batch(i).image), batch(i).label)

  def measure(learner):
    learner = experiment.method.before_eval(learner, willing(training_views()))
    accuracy, nll = {}, {}
    for split, (images, labels) in splits.items():
      size = -(-min(EVALUATION_BATCH, len(labels)) // mesh.size) * mesh.size
      batches = willing(data.padded(images, labels, size, mesh=mesh))
      accuracy[split], nll[split] = evaluate.evaluate(count, learner, batches, key_test)
    return accuracy, nll

  return measure


def look(state, looked, step, experiment, checkpoints):
  """Waits for the steps so far: mean loss and accuracy, or FloatingPointError."""
  loss, accuracy, steps = (float(state.sums[name]) for name in ("loss", "accuracy", "steps"))
  if math.isfinite(loss):
    return {"loss": loss / max(steps, 1), "accuracy": accuracy / max(steps, 1)}
  kept = checkpoints.latest_step
  raise FloatingPointError(
    f"the loss stopped being a number between steps {looked} and {step}, at learning rate "
    f"{float(experiment.schedule(step - 1)):g}; lower config.learning_rate (or omega and beta) "
    "and start in another --workdir; "
    + (
      f"the last good checkpoint, of step {kept}, is kept" if kept else "no checkpoint is lost"
    )
  )


class Pace:
  """How fast the training steps go, evaluations left out, and how long the run has taken."""

  def __init__(self, seconds_before):
    self._began = self._saved = time.monotonic()
    self._before = seconds_before
    self._session_steps, self._session_seconds = 0, 0.0
    self.start()

  def start(self):
    """Begins a lap: the steps up to the next evaluation."""
    self._mark, self._images, self._lap = time.monotonic(), 0, 0.0

  def count(self, images):
    self._images += images
    self._session_steps += 1

  def tick(self):
    """The steps counted so far are done."""
    now = time.monotonic()
    self._lap += now - self._mark
    self._session_seconds += now - self._mark
    self._mark = now

  def seconds(self):
    """Since the run began, the sessions before this one included."""
    return self._before + time.monotonic() - self._began

  def images_per_second(self):
    return self._images / self._lap if self._lap else math.nan

  def step_seconds(self):
    return self._session_seconds / max(self._session_steps, 1)

  def look_every(self):
    """About once a second, and every `LOOK_EVERY` steps at least.

    Steps are dispatched ahead of what the device has done, and a stop waits for them all.
    """
    return min(max(int(1 / max(self.step_seconds(), 1e-3)), 1), LOOK_EVERY)

  def saved(self):
    self._saved = time.monotonic()

  def minutes_since_save(self):
    return (time.monotonic() - self._saved) / 60


@contextlib.contextmanager
def interruptible():
  """Yields `interrupted() -> bool`: whether SIGTERM or SIGINT came. A second one kills.

  In a pod all processes ask at once, and have the same answer: whether one came to any.
  """
  came = []

  def note(number, frame):
    del frame
    came.append(number)
    signal.signal(number, previous[number])

  try:
    previous = {
      number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)
    }
  except ValueError:  # not the main thread: signals are somebody else's
    previous = {}
  try:
    yield lambda: pod.anywhere(bool(came))
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def same_run(workdir, resolved):
  """Refuses a folder that holds a run of another config; nothing in it is touched."""
  there = logbook.read_config(workdir)
  if there is None:
    return
  if different := logbook.differing(there["config"], resolved):
    raise ValueError(
      f"{workdir} holds a run of another config ({'; '.join(different)}); "
      "take that config again, or another --workdir"
    )
  was, here = there["environment"], environment()
  if moved := [
    f"{n}: {was[n]} -> {here[n]}" for n in ("devices", "cores") if was[n] != here[n]
  ]:
    print(f"the machine has changed ({', '.join(moved)}): results may differ in the last bits")


def readable(line):
  """A line of the logbook for the eye."""
  splits = (
    f"{split} " + ", ".join(f"{reader} {value:.4f}" for reader, value in readers.items())
    for split, readers in line["accuracy"].items()
  )
  return f"epoch {line['epoch']:g}: loss {line['losses']['loss']:.4f}; " + "; ".join(splits)


def closing(result):
  """The table that a finished run ends with."""
  rows = [
    (
      name,
      "single network" if reader["single"] else "ensemble",
      *(f"{reader[which]:.4f}" for which in ("last", "best")),
      f"{reader['best_epoch']:g}",
      "-" if reader["at_best_validation"] is None else f"{reader['at_best_validation']:.4f}",
    )
    for name, reader in result["readers"].items()
  ]
  rows.sort(key=lambda row: row[1] != "single network")
  headers = ("reader", "kind", "last epoch", "best on test", "at epoch", "best on validation")
  best = result["best_single"]
  return (
    f"test accuracy, one seed ({result['seed']}), {result['evaluations']} evaluations\n"
    + tabulate(rows, headers, disable_numparse=True)
    + f"\nbest single network: {best['reader']} {best['accuracy']:.4f} at epoch "
    f"{best['epoch']:g}, chosen on {best['chosen_on']}"
  )
