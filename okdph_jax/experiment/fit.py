"""fit: from a config and a folder to a finished run."""

import importlib.metadata
import os

import jax
from ml_collections import ConfigDict
from tabulate import tabulate

from okdph_jax import data
from okdph_jax.experiment.build import build
from okdph_jax.experiment.config import check
from okdph_jax.experiment.summary import (
  ensure_writable,
  environment,
  parameters,
  resolve,
  summary,
)
from okdph_jax.runtime import distributed, host
from okdph_jax.runtime.signals import Interrupted, interruptible
from okdph_jax.training import logbook
from okdph_jax.training.loop import train

FINISHED, INTERRUPTED = 0, 75  # exit codes; 75 is EX_TEMPFAIL: try again


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
    with distributed.only_leader_prints():
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
  ensure_writable(workdir)
  with distributed.leader_first():  # it may have to prepare them
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
  with distributed.leader_first():  # another generation reads it
    logbook.write_result(workdir, result)
  print(f"{closing(result)}\nthe run is in {workdir}")
  return FINISHED


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
