"""Groups of devices that hold a part of the students each."""

import functools
import itertools
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.accelerators import collectives
from okdph_jax import data
from okdph_jax.experiment.build import build
from okdph_jax.experiment.fit import fit
from okdph_jax.main import parse
from okdph_jax.methods.okdph import okdph
from okdph_jax.methods.protocol import trained_as
from okdph_jax.nn import onednn
from okdph_jax.nn.execution import Execution
from okdph_jax.runtime import host
from okdph_jax.training.checkpoint import Checkpoints
from okdph_jax.training.step import initial_state, train_step
from tests import runs
from tests.methods import tiny

SIZE = 12


def run_of(mesh, steps=3):
  """(compiled step, state after so many steps, metrics) on the devices of the mesh."""
  method = okdph(tiny.context(), fuse_every="2 steps")
  if "students" in mesh.axis_names:
    method = trained_as(method, Execution(mesh=mesh))
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=5e-4)
  parts = method, tx, tiny.augment(3)
  everywhere = jax.NamedSharding(mesh, jax.P())
  batch = jax.device_put(tiny.batch(SIZE), jax.NamedSharding(mesh, jax.P("data")))
  key = jax.device_put(jax.random.key(0), everywhere)

  def start(key):
    return initial_state(*parts, batch, key)

  layout = host.layout(lambda: jax.eval_shape(start, key), mesh)
  state = tiny.jit(start, out_shardings=layout)(key)
  step = tiny.jit(functools.partial(train_step, *parts), out_shardings=(layout, everywhere))
  step = step.lower(state, batch, key).compile()
  for _ in range(steps):
    state, metrics = step(state, batch, key)
  return step, state, metrics


def check(groups):
  """The numbers of one group, and what crosses between the devices."""
  auto = (jax.sharding.AxisType.Auto,)
  _, want, wanted = run_of(jax.make_mesh((jax.device_count(),), ("data",), auto))
  step, state, metrics = run_of(host.mesh(groups=groups))
  compare = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
  jax.tree.map(compare, jax.device_get((state, metrics)), jax.device_get((want, wanted)))
  own = {}  # shapes of what belongs to the students, on one device
  for leaf in jax.tree.leaves((state.opt_state, state.learner.params["students"])):
    if leaf.ndim > 2:
      part = leaf.addressable_shards[0].data.shape
      assert part == (leaf.shape[0] // groups, *leaf.shape[1:])
      own[part] = own[leaf.shape] = own[leaf.shape[1:]] = leaf
  for line in step.as_text().splitlines():
    gathers = re.search(r" = (.*) (all-gather|all-to-all|collective-permute)\(", line)
    if gathers:  # of images and logits alone
      shapes = re.findall(r"\[([\d,]*)\]", gathers[1])
      assert not own.keys() & {tuple(int(n) for n in x.split(",") if n) for x in shapes}, line
  return collectives(step.as_text())


def test_each_group_trains_its_student_and_no_optimizer_state_moves():
  """On four devices, so that a group also splits its batch."""
  code = (
    "import jax; jax.config.update('jax_num_cpu_devices', 4)\n"
    "from tests.training.test_student_groups import check; check(2)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {onednn.VARIABLE: "xla"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_a_checkpoint_of_one_layout_restores_on_another(tmp_path, monkeypatch):
  """Of one device, of two that share the batch, and of two with a student each."""
  monkeypatch.setattr(onednn, "choice", lambda: onednn.Choice(None))
  meshes = {"one": host.mesh(1), "two": host.mesh(2), "apart": host.mesh(groups=2)}
  states = {name: state_on(mesh) for name, mesh in meshes.items()}
  for name, other in itertools.permutations(meshes, 2):
    with Checkpoints(tmp_path / f"{name}-{other}") as checkpoints:
      checkpoints.save(1, states[name])
      restored = checkpoints.restore(jax.tree.map(lambda x: x * 0, states[other]))
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (restored, states[name])))
    placed = [x.sharding.device_set for x in jax.tree.leaves(restored)]
    assert placed == [x.sharding.device_set for x in jax.tree.leaves(states[other])]


def state_on(mesh):
  """A state with random numbers in it, as it lies on the devices of the mesh."""
  method = okdph(tiny.context())
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=5e-4)
  parts = method, tx, tiny.augment(3)
  start = functools.partial(initial_state, *parts, tiny.batch(SIZE))
  layout = host.layout(lambda: jax.eval_shape(start, jax.random.key(0)), mesh)
  return tiny.jit(start, out_shardings=layout)(jax.random.key(mesh.size))


def test_a_run_with_groups_is_a_run_of_any_number_of_them(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(onednn, "choice", lambda: onednn.Choice(None))
  path = runs.arrays(tmp_path / "data.npz")
  for groups in (2, 1):
    options = [*runs.options(path), "--config.epochs=1", f"--config.student_groups={groups}"]
    config, *_ = parse(["--config=configs/digits.py:okdph", *options, "--workdir=unused"])
    config.views = ("crop(1)",)
    result = fit(config, tmp_path / "run")
  assert set(runs.SINGLE) < result.readers.keys()
  assert "is finished; nothing to do" in capsys.readouterr().out


def test_what_does_not_divide_is_refused_in_one_line(monkeypatch):
  with pytest.raises(ValueError, match="student_groups=3 does not divide 2 devices"):
    host.mesh(groups=3)
  config, *_ = parse(["--config=configs/digits.py:okdph,,3", "--config.student_groups=2"])
  monkeypatch.setattr(onednn, "choice", lambda: onednn.Choice(None))
  with pytest.raises(ValueError, match="does not divide the 3 networks of okdph with 3"):
    build(config, data.load(config))
