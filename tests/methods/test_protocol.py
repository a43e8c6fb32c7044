"""The checks that every method and every wrapper passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from okdph_jax.core import Views
from okdph_jax.methods import METHODS, WRAPPERS, assemble
from okdph_jax.methods.protocol import run_networks
from okdph_jax.nn.students import run
from okdph_jax.runtime import host
from okdph_jax.training.step import initial_state, train_step
from tests.methods import tiny

OPTIONS = {"kdcl general": ("kdcl", {"target": "general"})}
STACKS = {
  **{f"{name} around dml": ("dml", (name,)) for name in WRAPPERS if name != "reestimate"},
  "reestimate around okdph": ("okdph", ("reestimate",)),
  **{f"{name} around okdph": ("okdph", (name,)) for name in ("sam", "dot", "swa", "ema")},
  "dot around kd": ("kd", ("dot",)),
  "dot around ffl": ("ffl", ("dot",)),
  "dot around kr": ("kr", ("dot",)),
  "swa around sam around okdph": ("okdph", ("sam", "swa")),
  "gradient_cosine around dot around kd": ("kd", ("dot", "gradient_cosine")),
  "everything around pcl": ("pcl", ("dot", "sam", "ema", "swa")),
}
CASES = [*METHODS, *OPTIONS, *STACKS]
ABOUT_ZERO = ("gate/Dense_0/bias",)  # a bias before a batch normalisation
STEPS = 7


def build(case, epoch_steps=3):
  context = tiny.context(teacher=True, epoch_steps=epoch_steps)
  name, options = OPTIONS.get(case, (case, {}))
  wrappers = ()
  if case in STACKS:
    name, wrappers = STACKS[case]
  method = METHODS[name](context, **options)
  for wrapper in wrappers:
    method = WRAPPERS[wrapper](method, context)
  return method


@functools.cache
def trained(case):
  """A method's step, and the states and metrics of a few of its steps."""
  method = build(case)
  tx = method.optimizer(0.05, momentum=0.9, weight_decay=0.0)
  augment, key, batch = tiny.augment(method.views), jax.random.key(1), tiny.batch()
  start = tiny.jit(lambda: initial_state(method, tx, augment, batch, key))
  step = tiny.jit(functools.partial(train_step, method, tx, augment))

  def run():
    states, metrics = [start()], []
    for _ in range(STEPS):
      state, measured = step(states[-1], batch, key)
      states.append(state)
      metrics.append(measured)
    return states, metrics

  first = run()
  assert step._cache_size() == 1  # here, because other tests may clear JAX's caches
  return method, step, run, *first


@pytest.mark.parametrize("case", CASES)
def test_one_trace_and_one_structure(case):
  _, step, _, states, _ = trained(case)
  assert typed(states[0]) == typed(states[-1])
  learner = states[0].learner
  assert {*learner.params} == {*learner.stats} == {"students", "shared"}
  short = jax.eval_shape(step, states[0], tiny.batch(2), jax.random.key(1))  # the last batch
  assert jax.tree.map(jnp.shape, short[0]) == jax.tree.map(jnp.shape, states[0])


@pytest.mark.parametrize("case", CASES)
def test_loss_falls_on_a_fixed_batch(case):
  _, _, _, states, metrics = trained(case)
  assert all(np.isfinite(m).all() for m in jax.tree.leaves((states[-1], metrics)))
  for m in metrics:
    assert {"loss", "task", "distill", "accuracy"} <= m.keys() and np.shape(m["accuracy"]) == ()
    np.testing.assert_allclose(m["loss"], m["task"] + m["distill"], rtol=1e-6)
  assert metrics[-1]["task"] < metrics[0]["task"]


@pytest.mark.parametrize("case", CASES)
def test_same_key_same_run(case):
  _, _, run, states, _ = trained(case)
  assert_same(run()[0][-1], states[-1])


@pytest.mark.parametrize("case", CASES)
def test_training_moves_the_batch_statistics_of_all_that_it_runs(case):
  """Of students, stem, head, and a teacher that is an average; a given teacher is frozen."""
  *_, states, _ = trained(case)
  before, after = (state.learner for state in states[:2])

  def moves(a, b, stacked=True):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
      differ = np.asarray(x) != np.asarray(y)
      assert differ.reshape(len(differ) if stacked else 1, -1).any(1).all()

  moves(before.stats["students"], after.stats["students"])
  moves(before.stats["shared"], after.stats["shared"], stacked=False)
  memory, later = before.memory, after.memory
  if "pcl" in case:
    moves(memory["mean"]["stats"]["students"], later["mean"]["stats"]["students"])
  if case == "mean_teacher":
    moves(memory["teacher"]["batch_stats"], later["teacher"]["batch_stats"])
  elif "teacher" in memory:
    assert_same(memory["teacher"], later["teacher"])


@pytest.mark.parametrize("case", CASES)
def test_readers_give_logits_and_single_ones_are_networks(case):
  method, _, _, states, _ = trained(case)
  image = tiny.batch().image

  @tiny.jit
  def read(learner):
    networks = method.networks(learner)
    alone = {name: run(tiny.net(), variables, image)[0] for name, variables in networks.items()}
    half = method.ensembles(learner, image[:2])
    return method.predict(learner, image), method.ensembles(learner, image), alone, half

  single, more, alone, half = read(states[-1].learner)
  assert single and not single.keys() & more.keys() and single.keys() == alone.keys()
  for logits in (*single.values(), *more.values()):
    assert logits.shape == (tiny.B, tiny.K) and np.isfinite(logits).all()
  for name, logits in single.items():
    np.testing.assert_allclose(alone[name], logits, rtol=1e-4, atol=1e-5)
  for name, logits in more.items():  # of one image, whatever the others are
    np.testing.assert_allclose(half[name], logits[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_every_parameter(case):
  """Without weight decay momentum is, after one step, the gradient."""
  *_, states, _ = trained(case)
  for path, velocity in momenta(states[1].opt_state).items():
    if path.endswith(ABOUT_ZERO):
      assert np.abs(velocity).max() < 1e-6, path
    else:
      per_student = (
        velocity.reshape(len(velocity), -1) if "students" in path else velocity[None]
      )
      assert (np.abs(per_student).reshape(len(per_student), -1).max(1) > 0).all(), path


class Dropping(tiny.nn.Module):
  """Drops out what a part returns: it fails in training without a key."""

  part: tiny.nn.Module

  @tiny.nn.compact
  def __call__(self, x, train):
    return jax.tree.map(tiny.nn.Dropout(0.1, deterministic=not train), self.part(x, train))


def test_networks_drop_out_and_bare_ones_train_under_methods_of_whole_networks(monkeypatch):
  class Bare(tiny.nn.Module):
    @tiny.nn.compact
    def __call__(self, x, train):
      return tiny.nn.Dense(tiny.K)(tiny.nn.relu(tiny.nn.Conv(4, (3, 3))(x)).mean((1, 2)))

  class Half(Bare):
    stem: tiny.nn.Module = tiny.Stem()

  context = tiny.context(Dropping(Bare()), teacher=True)
  batch = tiny.batch()

  def keeps_its_structure(method):
    tx = method.optimizer(0.1, momentum=0.9, weight_decay=0.0)
    augment, key = tiny.augment(method.views), jax.random.key(0)
    state = jax.eval_shape(lambda: initial_state(method, tx, augment, batch, key))
    after, _ = jax.eval_shape(lambda s: train_step(method, tx, augment, s, batch, key), state)
    assert typed(after) == typed(state)

  for name in ("base", "kd", "dml", "kdcl", "kr", "mean_teacher", "okdph"):
    keeps_its_structure(METHODS[name](context))
  keeps_its_structure(METHODS["kdcl"](context, target="general"))
  monkeypatch.setattr(host, "compiler_options", lambda: None)  # of a program within another
  okdph = WRAPPERS["reestimate"](METHODS["okdph"](context), context)
  views = Views(np.stack([batch.image] * 3), batch.label)
  before = jax.eval_shape(okdph.init, jax.random.key(0), views.image)
  after = jax.eval_shape(lambda learner: okdph.before_eval(learner, [views]), before)
  assert typed(after) == typed(before)
  parts = Dropping(tiny.Stem()), Dropping(tiny.Branch(tiny.K))
  for name in ("one", "okddip", "ffl", "pcl"):
    keeps_its_structure(METHODS[name](tiny.context(tiny.Net(*parts, ""))))
    for whole in (Bare(), Half()):
      with pytest.raises(ValueError, match=f"{type(whole).__name__} lacks .stem or .branch"):
        METHODS[name](tiny.context(whole))


def typed(state):
  return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), state)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def momenta(opt_state):
  velocity = optax.tree_utils.tree_get(opt_state, "trace", default=None)
  if velocity is None:  # DOT's pair
    velocity = jax.tree.map(jnp.add, *opt_state[0])
  flat = jax.tree_util.tree_flatten_with_path(velocity)[0]
  return {"/".join(k.key for k in path): np.asarray(v) for path, v in flat}


@pytest.mark.parametrize(
  "name, options, says",
  [
    ("base", dict(label_smoothing=1.0), r"base: label_smoothing=1.0 is outside \[0, 1\)"),
    ("base", dict(students=0), "base needs at least 1 student;"),
    ("dml", dict(students=1), "dml needs at least 2 students"),
    ("kdcl", dict(task_weight=-0.5), "kdcl: task_weight=-0.5"),
    ("kd", dict(temperature=np.inf), "kd: temperature=inf must lie in"),
    ("kd", dict(targets="firm"), "kd: targets='firm' is not one of soft, hard, smoothed"),
    ("kr", dict(temperature=0.0), "kr: temperature=0.0"),
    ("ffl", dict(fusion_weight_decay=-1e-5), "ffl: fusion_weight_decay=-1e-05"),
    ("mean_teacher", dict(decay=-0.1), "mean_teacher: decay=-0.1 is outside"),
    ("mean_teacher", dict(weight=np.nan), "mean_teacher: weight=nan"),
    ("pcl", dict(decay=1.5), "pcl: decay=1.5 is outside"),
    ("okddip", dict(temperature=-3.0), "okddip: temperature=-3.0"),
    ("one", dict(temperature=np.nan), "one: temperature=nan"),
  ],
)
def test_options_outside_their_bounds_are_refused(name, options, says):
  with pytest.raises(ValueError, match=says) as error:
    METHODS[name](tiny.context(teacher=True), **options)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["okdph", "mean_teacher", "pcl"])
def test_predict_is_every_network_run_on_the_images(name):
  """What a method of one's own gets by `run_networks` is what the fast paths compute."""
  method, *_, states, _ = trained(name)
  predict = run_networks(tiny.net(), method.networks)
  got, want = (
    tiny.jit(f)(states[-1].learner, tiny.batch().image) for f in (predict, method.predict)
  )
  assert [*got] == [*want]
  for reader in got:
    np.testing.assert_allclose(got[reader], want[reader], rtol=1e-4, atol=1e-5)


def test_a_config_is_assembled_with_the_first_wrapper_innermost():
  context = tiny.context()
  options = {"name": "dml", "students": 3}
  wrappers = [{"name": "ema", "decay": 0.5}, {"name": "weighted", "task_weight": 2.0}]
  method = assemble(context, options, wrappers)
  assert method.views == 3 and method.in_memory == ("ema_",)
  assert options == {"name": "dml", "students": 3} and wrappers[0]["name"] == "ema"
  inside_out = [{"name": "sam"}, {"name": "dot"}]
  with pytest.raises(ValueError, match="must come before sam"):
    assemble(context, {"name": "dml"}, inside_out)
  assert assemble(context, {"name": "base"}, [{"name": "swa"}]).views == 1
  for names, says in (
    (("dmll",), "no method 'dmll' .*base,"),
    (("dml", "samm"), "no wrapper 'samm' .*sam,"),
  ):
    with pytest.raises(ValueError, match=f"there is {says}"):
      assemble(context, *({"name": names[0]}, [{"name": name} for name in names[1:]]))
