import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from okdph_jax.core import Learner
from okdph_jax.training.checkpoint import Checkpoints, learner_at

TX = optax.chain(optax.add_decayed_weights(5e-4), optax.trace(0.9), optax.scale(-0.1))


def start(seed=0, width=5):
  """A state as the train step has it: nested, with empty parts, sums and an integer step."""
  kernel = jax.random.normal(jax.random.key(seed), (2, 3, width))
  params = {"students": {"Dense_0": {"kernel": kernel}}, "shared": {}}
  memory = {"weights": jnp.full(2, 1 / 3, jnp.float32), "key": jax.random.key(seed + 1)}
  return {
    "step": jnp.int32(0),
    "learner": Learner(params, {"students": {}, "shared": {}}, memory),
    "opt_state": TX.init(params),
    "sums": {"loss": jnp.float32(0), "images": jnp.int32(0)},
  }


@partial(jax.jit, donate_argnums=0)
def advance(state):
  learner, sums = state["learner"], state["sums"]
  grads = jax.tree.map(jnp.sin, learner.params)
  updates, opt_state = TX.update(grads, state["opt_state"], learner.params)
  return {
    "step": state["step"] + 1,
    "learner": learner.replace(params=optax.apply_updates(learner.params, updates)),
    "opt_state": opt_state,
    "sums": {"loss": sums["loss"] * 1.1 + 0.3, "images": sums["images"] + 7},
  }


def advanced(state, steps):
  for _ in range(steps):
    state = advance(state)
  return state


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def steps(workdir):
  return sorted(int(name) for name in os.listdir(workdir / "checkpoints"))


def test_what_was_saved_comes_back_though_its_buffers_were_donated(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    state = advanced(start(), 3)
    checkpoints.save(3, state)
    state = advanced(state, 5)  # overwrites the buffers while the save goes on
    restored = checkpoints.restore(start(seed=9))
  assert_same_bits(restored, advanced(start(), 3))
  assert_same_bits(advanced(restored, 5), state)  # and may itself be donated


def test_opening_again_gives_the_latest(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(start()) is None
    assert checkpoints.best_step is None
    for step in (1, 2):
      checkpoints.save(step, advanced(start(), step))
  with Checkpoints(tmp_path) as checkpoints:
    assert int(checkpoints.restore(start())["step"]) == 2
    assert checkpoints.best_step is None  # nothing was evaluated


def test_arrays_come_back_where_the_live_ones_are(tmp_path):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  state = jax.device_put(start(), replicated)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    restored = checkpoints.restore(state)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
    assert x.sharding == y.sharding


def test_the_two_latest_and_the_earliest_best_are_kept(tmp_path):
  accuracies = {1: 0.2, 2: 0.9, 3: None, 4: 0.9, 5: None, 6: 0.1, 7: None, 8: None}
  with Checkpoints(tmp_path) as checkpoints:
    for step, accuracy in accuracies.items():
      checkpoints.save(step, advanced(start(), step), accuracy)
  assert steps(tmp_path) == [2, 7, 8]
  best, wanted = learner_at(tmp_path, 2), advanced(start(), 2)["learner"]
  assert_same_bits(best.students, wanted.students)
  with Checkpoints(tmp_path) as checkpoints:  # after a resume too
    assert checkpoints.best_step == 2
    for step in (9, 10):
      checkpoints.save(step, advanced(start(), step))
  assert steps(tmp_path) == [2, 9, 10]


def test_a_step_saved_before_its_evaluation_gets_its_accuracy(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, start(), accuracy=0.5)
    checkpoints.save(2, start())
    checkpoints.save(2, start(), accuracy=0.75)
    checkpoints.save(2, start())  # and keeps it
    assert checkpoints.best_step == 2
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.best_step == 2


def damage(checkpoint):
  for file in checkpoint.rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_arrays(checkpoint):
  damage(checkpoint / "state")


def halve(checkpoint):
  shutil.rmtree(checkpoint / "state")


def empty(checkpoint):
  shutil.rmtree(checkpoint)
  checkpoint.mkdir()


def flip_a_bit(checkpoint):
  """In the largest file, which holds the large arrays."""
  file = max(checkpoint.rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)


def reshape_metrics(checkpoint):
  file = checkpoint / "metrics" / "metrics"
  file.write_text(file.read_text().replace("0.3", "[0.3]"))


def raise_accuracy(checkpoint):
  file = checkpoint / "metrics" / "metrics"
  file.write_text(file.read_text().replace("0.3", "0.7"))


HARMS = [damage, damage_arrays, halve, empty, flip_a_bit, reshape_metrics, raise_accuracy]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_latest_checkpoint_costs_time_and_not_the_run(tmp_path, harm, capfd):
  wide = partial(start, width=20_000)
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, advanced(wide(), step), accuracy=step / 10)
  harm(tmp_path / "checkpoints" / "3")
  with pytest.raises(ValueError, match="cannot be read") as error:
    learner_at(tmp_path, 3)
  assert "\n" not in str(error.value)
  with Checkpoints(tmp_path) as checkpoints:
    assert_same_bits(checkpoints.restore(wide()), advanced(wide(), 2))
    out, err = capfd.readouterr()
    assert "step 3 is damaged: deleted" in out and out.count("\n") == 1 and not err
    checkpoints.save(3, advanced(wide(), 3), accuracy=0.05)
    assert checkpoints.best_step == 2
  with Checkpoints(tmp_path) as checkpoints:
    assert_same_bits(checkpoints.restore(wide()), advanced(wide(), 3))


def test_a_checkpoint_of_an_earlier_version_has_no_digest(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, advanced(start(), 1), accuracy=0.5)
  (metrics := tmp_path / "checkpoints/1/metrics/metrics").write_text(
    '{"accuracy": 0.5, "step": 1}'
  )
  with Checkpoints(tmp_path) as checkpoints:
    assert_same_bits(checkpoints.restore(start()), advanced(start(), 1))
  assert learner_at(tmp_path, 1) and "digest" not in metrics.read_text()


def test_a_device_without_memory_is_no_damage(tmp_path, monkeypatch):
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, advanced(start(), step))

    def read(step, state):
      if step == 2:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
      return state

    monkeypatch.setattr(checkpoints, "_read", read)
    with pytest.raises(jax.errors.JaxRuntimeError):
      checkpoints.restore(start())
  assert steps(tmp_path) == [1, 2]


def test_a_state_of_another_shape_is_refused_and_nothing_is_lost(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, start())
    checkpoints.save(2, start())
    with pytest.raises(ValueError, match=r"no checkpoint in .* of steps \[1, 2\]") as error:
      checkpoints.restore(start(width=6))
  assert "\n" not in str(error.value)
  assert steps(tmp_path) == [1, 2]


KILLED = """
import sys, jax.numpy as jnp
from okdph_jax.training.checkpoint import Checkpoints, learner_at
state = {f"w{i}": jnp.zeros((300, 1000)) for i in range(20)}
with Checkpoints(sys.argv[1]) as checkpoints:
  for step in range(1, 1000):
    state = {name: w + 1 for name, w in state.items()}
    checkpoints.save(step, state)
    print(step, flush=True)
"""


def test_a_kill_during_a_save_leaves_a_whole_checkpoint(tmp_path):
  with subprocess.Popen(
    [sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True
  ) as run:
    for line in run.stdout:
      if int(line) == 4:
        run.send_signal(signal.SIGKILL)  # the save of step 4 has begun, or of step 5
        break
  (tmp_path / "checkpoints" / "99.orbax-checkpoint-tmp").mkdir(exist_ok=True)
  like = {f"w{i}": jnp.zeros((300, 1000)) for i in range(20)}
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(like)
  step = float(restored["w0"][0, 0])
  assert step >= 3
  for w in restored.values():
    np.testing.assert_array_equal(w, np.full((300, 1000), step))
  assert max(steps(tmp_path)) == step  # nothing half-written is left
