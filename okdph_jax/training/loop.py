"""The loop: from the latest checkpoint, or the start, to the last evaluation."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

from okdph_jax.core import Views
from okdph_jax.runtime import distributed, host
from okdph_jax.runtime.signals import Interrupted
from okdph_jax.training import evaluate, logbook
from okdph_jax.training.checkpoint import Checkpoints, snapshot
from okdph_jax.training.compile import compile_steps
from okdph_jax.training.progress import Progress, duration
from okdph_jax.training.timer import StepTimer

PREDICT_AFTER = 20  # steps of a session before it says how long the run will take
EVALUATION_BATCH = 500


def train(config, workdir, dataset, experiment, interrupted):
  """The loop: from the latest checkpoint, or the start, to the last evaluation.

  Returns the FLOPs of a training step per image.
  """
  everywhere = NamedSharding(host.mesh(config.devices), PartitionSpec())
  key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=everywhere)()
  feed = dict(batch_size=config.batch_size, views=experiment.method.views, mesh=everywhere.mesh)
  batch = dataset.train.batches(seed=config.seed, **feed)
  shapes = dataset.train.shapes(**feed)
  state, advance, flops = compile_steps(experiment, shapes, key, everywhere)
  measure = evaluator(dataset, experiment, batch, key, everywhere.mesh, interrupted)
  every = config.eval_every_epochs * experiment.epoch_steps

  with Checkpoints(workdir) as checkpoints, logbook.Logbook(workdir) as book:
    state = checkpoints.restore(state) or state
    step = int(state.step)
    with distributed.leader_first():
      logbook.cut_after(workdir, step)
    last = (logbook.lines(workdir) or [{"step": 0, "seconds": 0.0}])[-1]
    timer = StepTimer(last["seconds"])

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
          seconds=timer.seconds(),
          images_per_second=timer.images_per_second(),
        )
        state = state.replace(sums=jax.tree.map(lambda x: x * 0, state.sums))
        checkpoints.save(step, state, logbook.best_single(line, experiment.single)[0])
        progress.say(readable(line))
        timer.start()
        return state

      try:
        if step > last["step"] and (step % every == 0 or step == experiment.steps):
          state = evaluated(state)
        timer.start()
        start = looked = step
        stride = 1  # steps to the next look
        while step < experiment.steps:
          current = batch(step)
          state, _ = advance[len(current.label)](state, current, key)
          step += 1
          timer.count(len(current.label))
          due = step % every == 0 or step == experiment.steps

          if due or step - looked >= stride or step - start == PREDICT_AFTER:
            means = mean_metrics(state, looked, step, experiment, checkpoints)
            looked = step
            timer.tick()
            stride = distributed.broadcast_from_leader(timer.look_every())
            progress.update(step, **means, images_per_second=timer.images_per_second())
          if step - start == PREDICT_AFTER:
            seconds = timer.step_seconds()
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
          elif distributed.broadcast_from_leader(
            timer.minutes_since_save() > config.checkpoint_every_minutes
          ):
            checkpoints.save(step, state)
            timer.saved()
      except Interrupted:
        checkpoints.save(step, state)
        raise
  return flops


def evaluator(dataset, experiment, batch, key, mesh, interrupted):
  """`measure(learner) -> (accuracy, cross-entropy)`, each {split: {reader: number}}."""
  count = evaluate.counter(experiment.method, experiment.look)
  augment = jax.jit(experiment.augment, compiler_options=host.compiler_options())
  splits = {"test": dataset.test}
  if dataset.validation:
    splits["validation"] = dataset.validation
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
    for name, split in splits.items():
      size = -(-min(EVALUATION_BATCH, len(split)) // mesh.size) * mesh.size
      batches = willing(split.padded(size, mesh=mesh))
      accuracy[name], nll[name] = evaluate.evaluate(count, learner, batches, key_test)
    return accuracy, nll

  return measure


def mean_metrics(state, looked, step, experiment, checkpoints):
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


def readable(line):
  """A line of the logbook for the eye."""
  splits = (
    f"{split} " + ", ".join(f"{reader} {value:.4f}" for reader, value in readers.items())
    for split, readers in line["accuracy"].items()
  )
  return f"epoch {line['epoch']:g}: loss {line['losses']['loss']:.4f}; " + "; ".join(splits)
