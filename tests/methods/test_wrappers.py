"""SAM, DOT, SWA and EMA against their formulas, and the limits in which they change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from okdph_jax.core import Terms, Views
from okdph_jax.methods import METHODS, WRAPPERS
from okdph_jax.methods.dot import dependence
from okdph_jax.methods.protocol import plain_gradient
from okdph_jax.methods.statistics import with_mean_statistics
from okdph_jax.nn.students import run
from okdph_jax.optimizers import dot_sgd, sgd
from okdph_jax.schedules import multistep
from okdph_jax.training.step import State, train_step
from tests.methods import tiny

KEY = jax.random.key(3)
STARTS = {}  # one compiled start per method


def begin(name, **options):
  """A method, a learner of it and views; starts are compiled once."""
  method = METHODS[name](tiny.context(teacher=True), **options)
  batch = tiny.batch()
  image = tiny.augment(method.views)(None, batch.image)
  if name not in STARTS:
    STARTS[name] = tiny.jit(method.init)(KEY, image)
  return method, STARTS[name], Views(image, batch.label)


def objective(method, learner, views, step=5):
  return lambda params: method.losses(learner.replace(params=params), views, step, KEY)


def train(method, learner, steps):
  """The state after some steps on one batch."""
  tx = method.optimizer(0.05, momentum=0.9, weight_decay=0.01)
  step = tiny.jit(functools.partial(train_step, method, tx, tiny.augment(method.views)))
  state = State(jnp.int32(0), learner, tx.init(learner.params), {})
  for _ in range(steps):
    state = step(state.replace(sums={}), tiny.batch(), KEY)[0]
  return state


def close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("name", ["dml", "okdph"])
def test_sam_without_radius_is_the_method_itself(name):
  method, learner, views = begin(name)
  wrapped = WRAPPERS["sam"](method, None, rho=0.0)

  @tiny.jit
  def gradients(params):
    f = objective(method, learner, views)
    return method.gradient(f, params)[0], wrapped.gradient(f, params)[0]

  close(*gradients(learner.params))


@pytest.mark.parametrize("wrapper", ["sam", "asam"])
@pytest.mark.parametrize("name", ["dml", "okdph"])
def test_sam_climbs_by_its_formula(wrapper, name):
  """Independent students have a norm each, parts of one objective a joint one."""
  method, learner, views = begin(name)
  rho, eta = 0.3, 0.01
  wrapped = WRAPPERS[wrapper](method, None, rho=rho)
  seen = []

  def quadratic(params):
    """Its gradient is the point itself, so that the second gradient is where SAM stood."""
    seen.append(params)
    half = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) / 2
    return Terms(half, 0.0), (learner, {})

  params = jax.tree.map(np.asarray, learner.params)
  got, _ = wrapped.gradient(quadratic, params)
  leaves = [leaf.astype(np.float64) for leaf in jax.tree.leaves(params)]
  scale = [np.abs(leaf) + eta if wrapper == "asam" else np.ones_like(leaf) for leaf in leaves]

  def norm(parts):
    return np.sqrt(sum((part**2).sum() for part in parts))

  for leaf, s, mine in zip(leaves, scale, jax.tree.leaves(got), strict=True):
    for m in range(2):
      rows = range(2) if name == "okdph" else [m]
      moving = [(t * g)[n] for t, g in zip(scale, leaves, strict=True) for n in rows]
      stood = leaf[m] + rho / norm(moving) * s[m] ** 2 * leaf[m]
      np.testing.assert_allclose(mine[m], stood, rtol=1e-4, atol=1e-6)


def test_sam_keeps_the_statistics_of_its_first_pass():
  method, learner, views = begin("dml")
  wrapped = WRAPPERS["sam"](method, None, rho=5.0)
  f = objective(method, learner, views)
  _, (after, metrics) = tiny.jit(lambda p: wrapped.gradient(f, p))(learner.params)
  _, (want, plain) = tiny.jit(f)(learner.params)
  close(after.stats, want.stats)
  close(metrics, plain)


@pytest.mark.parametrize("name", ["kd", "kr", "base"])
def test_dot_without_delta_is_sgd(name):
  method, learner, _ = begin(name)
  wrapped = WRAPPERS["dot"](method, None, delta=0.0)
  close(train(wrapped, learner, 4).learner, train(method, learner, 4).learner, 1e-3, 1e-5)


def test_dot_moves_by_its_formula():
  mu, delta, decay, rate = 0.9, 0.075, 0.01, 0.1
  tx = dot_sgd(rate, momentum=mu, weight_decay=decay, delta=delta)
  params = {"both": jnp.array(1.0), "task": jnp.array(2.0), "kd": jnp.array(3.0)}
  state, want = tx.init(params), {k: float(v) for k, v in params.items()}
  v_ce, v_kd, single = 0.0, 0.0, {"task": 0.0, "kd": 0.0}
  for t in range(1, 5):
    g_ce, g_kd = 0.3 * t, -0.7 / t
    grads = Terms(
      {"both": jnp.array(g_ce), "task": jnp.array(g_ce), "kd": None},
      {"both": jnp.array(g_kd), "task": None, "kd": jnp.array(g_kd)},
    )
    updates, state = tx.update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    v_ce = (mu - delta) * v_ce + g_ce + decay * want["both"]
    v_kd = (mu + delta) * v_kd + g_kd
    want["both"] -= rate * (v_ce + v_kd)
    for name, g in (("task", g_ce), ("kd", g_kd)):
      single[name] = mu * single[name] + g + decay * want[name]
      want[name] -= rate * single[name]
  close(params, want)
  with pytest.raises(ValueError, match="momentum 0.9 - delta 0.1 and"):
    dot_sgd(rate, momentum=0.9, weight_decay=decay, delta=0.1)


@pytest.mark.parametrize("name", ["kr", "okddip", "okdph"])
def test_dot_splits_the_gradient_by_what_each_term_reaches(name):
  method, learner, views = begin(name)
  wrapped = WRAPPERS["dot"](method, None)

  def three(params):
    f = objective(method, learner, views)
    return wrapped.gradient(f, params)[0], plain_gradient(f, params)[0]

  split, plain = tiny.jit(three)(learner.params)

  def unseen(g):
    return g is None

  whole = jax.tree.map(
    lambda p, a, b: sum(g for g in (a, b) if not unseen(g)), plain, split.task, split.distill
  )
  close(whole, plain, 1e-4, 1e-6)
  alone = {"kr": "labels", "okddip": "attention"}.get(name)
  for part, tree in split.task["shared"].items():
    reached = [not unseen(g) for g in jax.tree.leaves(tree, is_leaf=unseen)]
    assert all(reached) if part != alone else not any(reached), part
  assert not any(map(unseen, jax.tree.leaves(split.task["students"], is_leaf=unseen)))
  assert not any(map(unseen, jax.tree.leaves(split.distill, is_leaf=unseen)))


def test_what_reaches_what_is_structure_and_not_value():
  """A factor of 0.0 is a gradient; a stopped one is none, even inside a jitted part."""

  def terms(p):
    inner = jax.jit(lambda a, b: (a * 0.0, jax.lax.stop_gradient(b)))
    a, b = inner(p["a"], p["b"])
    return Terms(a + p["c"], b + p["c"] * 2), ()

  params = {"a": 1.0, "b": 2.0, "c": 3.0}
  _, jvp, _ = jax.linearize(terms, params, has_aux=True)
  want = Terms({"a": True, "b": False, "c": True}, {"a": False, "b": False, "c": True})
  assert dependence(jvp, params) == want


@pytest.mark.parametrize("inner", [None, "dot"])
def test_the_cosine_of_the_two_gradients(inner):
  """Against NumPy, over the parameters of both losses: KR's labels have one alone."""
  method, learner, views = begin("kr")
  inside = WRAPPERS[inner](method, None) if inner else method
  wrapped = WRAPPERS["gradient_cosine"](inside, None)
  f = objective(method, learner, views)
  gradients, (_, metrics) = tiny.jit(lambda p: wrapped.gradient(f, p))(learner.params)
  want, parts = tiny.jit(
    lambda p: (
      inside.gradient(f, p)[0],
      [jax.grad(lambda p, i=i: f(p)[0][i])(p) for i in (0, 1)],
    )
  )(learner.params)
  close(gradients, want, 1e-4, 1e-6)
  task, distill = (
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(part["students"])])
    for part in parts
  )
  cosine = task @ distill / np.linalg.norm(task) / np.linalg.norm(distill)
  np.testing.assert_allclose(metrics["gradient_cosine"], cosine, rtol=1e-4)


def test_the_cosine_needs_two_gradients():
  method, learner, views = begin("base")
  wrap, f = WRAPPERS["gradient_cosine"], objective(method, learner, views)
  for inside, says in [
    (method, "no parameter receives gradients of both"),
    (WRAPPERS["sam"](method, None), "must come before sam"),
  ]:
    with pytest.raises(ValueError, match=says):
      jax.eval_shape(lambda p, m=inside: wrap(m, None).gradient(f, p), learner.params)


def test_the_cosine_is_over_what_both_reach_and_0_where_one_of_them_is_zero():
  wrapped = WRAPPERS["gradient_cosine"](begin("base")[0], None)
  params = {"both": jnp.array([1.0, 2.0]), "task": jnp.array(3.0), "distill": jnp.array(4.0)}
  for factor, cosine in ((1.0, 1 / np.sqrt(2)), (0.0, 0.0)):

    def terms(p, factor=factor):
      task = factor * p["both"][0] + 5 * p["task"]
      return Terms(task, p["both"].sum() + 7 * p["distill"]), (None, {})

    gradients, (_, metrics) = wrapped.gradient(terms, params)
    close(gradients, {"both": np.array([1 + factor, 1]), "task": 5.0, "distill": 7.0})
    np.testing.assert_allclose(metrics["gradient_cosine"], cosine, rtol=1e-6)


def test_dot_goes_inside_sam():
  method, *_ = begin("dml")
  with pytest.raises(ValueError, match="must come before sam"):
    WRAPPERS["dot"](WRAPPERS["sam"](method, None), None)


def test_swa_averages_the_ends_of_its_epochs():
  """Start 241 of 300 in a run of 4 epochs is epoch 3: two snapshots."""
  method, _, views = begin("dml")
  wrapped = WRAPPERS["swa"](method, tiny.context())
  learner = tiny.jit(wrapped.init)(KEY, views.image)
  snapshots, after = [], tiny.jit(wrapped.after_step)
  for step in range(1, 13):
    learner = learner.replace(params=jax.tree.map(lambda x: x * 0.9, learner.params))
    learner = after(learner, step, KEY)
    if step in (9, 12):
      snapshots.append(learner.params)
      swa = learner.memory["swa"]
      want = jax.tree.map(lambda *x: sum(x) / len(x), *snapshots)  # noqa: B023
      close(swa["params"], want)
    assert learner.memory["swa"]["snapshots"] == len(snapshots)


def test_swa_before_its_start_and_of_one_snapshot_is_the_network():
  method, _, views = begin("dml")
  wrapped = WRAPPERS["swa"](method, tiny.context())
  learner = tiny.jit(wrapped.init)(KEY, views.image)
  learner = learner.replace(params=jax.tree.map(lambda x: x * 0.9, learner.params))
  assert wrapped.before_eval(learner, iter(())) is learner  # no pass over the data
  predict, image = tiny.jit(wrapped.predict), views.image[0]
  for state in (learner, wrapped.after_step(learner, 9, KEY)):
    readers = predict(state, image)
    assert [*readers] == ["student_0", "student_1", "swa_student_0", "swa_student_1"]
    np.testing.assert_array_equal(readers["swa_student_1"], readers["student_1"])


def test_swa_follows_its_schedule():
  context = tiny.context(epochs=300)
  wrapped = WRAPPERS["swa"](METHODS["base"](context), context)
  rate = wrapped.schedule(multistep(0.1, (450, 675)))
  for epoch in (0, 119, 120, 121, 180, 216, 217, 299):
    t = epoch / 241
    want = 0.1 if t <= 0.5 else 0.001 if t > 0.9 else 0.1 * (1 - 0.99 * (t - 0.5) / 0.4)
    np.testing.assert_allclose([rate(3 * epoch), rate(3 * epoch + 2)], want, rtol=1e-4)
  assert wrapped.schedule(lambda step: 0.1 / (step + 1))(1) == pytest.approx(0.1)  # the first


def test_swa_estimates_statistics_as_the_mean_over_images():
  """Of the averaged weights, over batches of several sizes, whatever statistics were before."""
  method, _, views = begin("base", students=1)
  wrapped = WRAPPERS["swa"](method, tiny.context())
  learner = wrapped.after_step(tiny.jit(wrapped.init)(KEY, views.image), 9, KEY)
  learner = learner.replace(params=jax.tree.map(lambda x: x * 0.5, learner.params))
  batches = [tiny.batch(4), tiny.batch(2, seed=1), tiny.batch(4, seed=2)]
  passes = [Views(b.image[None], b.label) for b in batches]
  ready = wrapped.before_eval(learner, passes)

  average = jax.tree.map(lambda x: x[0], learner.memory["swa"]["params"]["students"])
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), learner.stats["students"])
  want = zeros
  for b in batches:  # from zero, running statistics are a tenth of the batch's
    _, tenth = run(tiny.net(), {"params": average, "batch_stats": zeros}, b.image, train=True)
    share = len(b.label) / 10
    want = jax.tree.map(lambda w, s: w + 10 * s * share, want, tenth)  # noqa: B023
  close(jax.tree.map(lambda x: x[0], ready.memory["swa"]["stats"]["students"]), want, 1e-4)
  close(ready.stats, learner.stats, 0, 0)
  close(ready.params, learner.params, 0, 0)
  np.testing.assert_array_equal(
    wrapped.predict(ready, passes[0].image[0])["swa_student_0"],
    method.predict(
      learner.replace(
        params=learner.memory["swa"]["params"], stats=ready.memory["swa"]["stats"]
      ),
      passes[0].image[0],
    )["student_0"],
  )


def test_swa_around_pcl_takes_the_mean_over_images_and_views():
  """The stem sees every view, over batches of several sizes; a branch sees its own."""
  method = METHODS["pcl"](tiny.context(), students=2)
  wrapped = WRAPPERS["swa"](method, tiny.context())
  batches = [tiny.batch(4), tiny.batch(2, seed=1)]
  passes = [Views(np.stack([b.image, 1 - 2 * b.image]), b.label) for b in batches]
  learner = tiny.jit(wrapped.init)(KEY, passes[0].image)
  ready = wrapped.before_eval(wrapped.after_step(learner, 9, KEY), passes)
  params = learner.params["shared"]["stem"]
  zeros = jax.tree.map(jnp.zeros_like, learner.stats["shared"]["stem"])

  def statistics(net, params, zeros, image):  # from zero they are a tenth of the batch's
    maps, tenth = run(net, {"params": params, "batch_stats": zeros}, image, train=True)
    return maps, jax.tree.map(lambda s: 10 * s, tenth)

  stem, branch = [], []
  for views in passes:
    found = [statistics(tiny.Stem(), params, zeros, image) for image in views.image]
    stem += [(len(views.label), s) for _, s in found]
    first = jax.tree.map(lambda x: x[0], learner.students)
    none = jax.tree.map(jnp.zeros_like, first["batch_stats"])
    own = statistics(tiny.Branch(tiny.K), first["params"], none, found[0][0])[1]
    branch.append((len(views.label), own))

  def mean(parts):
    total = sum(n for n, _ in parts)
    return jax.tree.map(
      lambda *s: sum(n * x for (n, _), x in zip(parts, s, strict=True)) / total,
      *(s for _, s in parts),
    )

  stats = ready.memory["swa"]["stats"]
  close(stats["shared"]["stem"], mean(stem), 1e-4)
  close(jax.tree.map(lambda x: x[0], stats["students"]), mean(branch), 1e-4)


def test_averages_of_swa_s_students_are_reestimated_too():
  """Of `swa_hybrid` SWA has only means of the students' statistics."""
  method = WRAPPERS["swa"](METHODS["okdph"](tiny.context()), tiny.context())
  wrapped = WRAPPERS["reestimate"](method, tiny.context())
  views = jax.ShapeDtypeStruct((3, 2, *tiny.batch().image.shape[1:]), jnp.float32)
  start = jax.eval_shape(wrapped.init, KEY, views)
  networks = jax.eval_shape(wrapped.networks, start)
  added = [name for name in networks if name.startswith("reestimated_")]
  assert {*added} == {
    f"reestimated_{x}" for x in ("hybrid", "center", "swa_hybrid", "swa_center")
  }
  there = start.memory["reestimate"]
  older = start.with_memory(reestimate={x: there[x] for x in ("hybrid", "center")})
  assert "reestimated_hybrid" in jax.eval_shape(wrapped.networks, older)  # of earlier versions


@pytest.mark.parametrize(
  "name, readers", [("okdph", ("hybrid", "center")), ("pcl", ("mean_0", "mean_1", "mean_2"))]
)
def test_reestimated_readers_have_the_statistics_of_their_own_weights(name, readers):
  """As the mean over images, whatever the statistics were; the others are as without."""
  method, learner, views = begin(name)
  wrapped = WRAPPERS["reestimate"](method, tiny.context())
  start = tiny.jit(wrapped.init)(KEY, views.image)
  batches = [tiny.batch(4), tiny.batch(2, seed=1)]

  def seen(image):
    return np.stack([*[-image] * (method.views - 1), image])

  passes = [Views(seen(b.image), b.label) for b in batches]  # they see the last view
  ready = wrapped.before_eval(start, passes)
  close(ready.replace(memory={}), start.replace(memory={}), 0, 0)
  networks = wrapped.networks(ready)
  assert [*networks] == [*method.networks(start), *(f"reestimated_{r}" for r in readers)]
  for reader in readers:
    network, want = networks[reader], None
    zeros = jax.tree.map(jnp.zeros_like, network["batch_stats"])
    for b in batches:
      _, tenth = run(tiny.net(), network | {"batch_stats": zeros}, b.image, train=True)
      part = jax.tree.map(lambda s: 10 * s * len(b.label) / 6, tenth)  # noqa: B023
      want = part if want is None else jax.tree.map(jnp.add, want, part)
    found = networks[f"reestimated_{reader}"]
    close(found["batch_stats"], want, 1e-4)
    close(found["params"], network["params"], 0, 0)
  image = views.image[0]
  np.testing.assert_allclose(
    wrapped.predict(ready, image)[f"reestimated_{readers[0]}"],
    run(tiny.net(), networks[f"reestimated_{readers[0]}"], image)[0],
    rtol=1e-4,
  )


@pytest.mark.parametrize("wrapper", ["swa", "reestimate"])
def test_what_is_around_another_gives_it_the_pass_before_an_evaluation(wrapper):
  method, learner, _ = begin("okdph")
  given, passes = [], []
  within = method._replace(before_eval=lambda *asked: given.append(asked) or asked[0])
  wrapped = WRAPPERS[wrapper](within, tiny.context())
  memory = {"swa": {"snapshots": 0}, "reestimate": {}}
  wrapped.before_eval(learner.replace(memory=memory), passes)
  assert given[0][1] is passes


def test_statistics_of_a_layer_that_is_called_with_keywords():
  class Outer(tiny.nn.Module):
    @tiny.nn.compact
    def __call__(self, x, train):
      return tiny.nn.BatchNorm(momentum=0.9)(x, use_running_average=not train)

  x = np.random.default_rng(0).normal(2, 3, (4, 5)).astype(np.float32)
  variables = Outer().init(KEY, x, False)

  def forward():
    return Outer().apply(variables, x, train=True, mutable="batch_stats")[1]

  stats = with_mean_statistics(forward, jnp.int32(0), 4)["batch_stats"]["BatchNorm_0"]
  close(stats, {"mean": x.mean(0), "var": x.var(0)}, 1e-4)


class Twice(nnx.Module):
  """Of NNX; its one normalisation sees x and then 1 - 2 x."""

  def __init__(self, classes, rngs):
    self.norm = nnx.BatchNorm(classes, momentum=0.9, rngs=rngs)

  def __call__(self, x, train):
    for part in (x, 1 - 2 * x):
      y = self.norm(part, use_running_average=not train)
    return y


def test_statistics_of_an_nnx_layer_are_means_over_images_and_its_runs():
  net = nnx.bridge.ToLinen(Twice, kwargs={"classes": 5}, metadata_fn=None)
  x = np.random.default_rng(0).normal(2, 3, (6, 5)).astype(np.float32)
  variables = dict(net.init(KEY, x, False))

  @jax.jit
  def estimated(stats, x, seen):
    def forward():
      return run(net, variables | {"batch_stats": stats}, x, train=True)[1]

    return with_mean_statistics(forward, seen, len(x))

  stats = estimated(variables["batch_stats"], x[:4], jnp.int32(0))
  found = estimated(stats, x[4:], jnp.int32(4))["norm"]
  close(found["mean"], (1 - x.mean(0)) / 2, 1e-4)
  variance = (4 * x[:4].var(0) + 2 * x[4:].var(0)) / 6
  close(found["var"], (1 + 4) / 2 * variance, 1e-4)
  plain = run(net, variables, x, train=True)[1]["norm"]["mean"]  # its momentum is its own again
  close(plain, 0.1 * (0.9 * x.mean(0) + 1 - 2 * x.mean(0)), 1e-4)


def test_reestimate_asks_for_readers_that_are_averages():
  method, _, views = begin("dml")
  for options, says in [({}, "no average of networks"), ({"readers": ("center",)}, "'center'")]:
    wrapped = WRAPPERS["reestimate"](method, tiny.context(), **options)
    with pytest.raises(ValueError, match=says):
      jax.eval_shape(wrapped.init, KEY, views.image)


@pytest.mark.parametrize(
  "name, options, wrappers, more",
  [
    ("mean_teacher", {}, ["ema"], "ema_student_0"),
    (
      "pcl",
      {"students": 2},
      ["swa"],
      "swa_student_0 swa_student_1 swa_ensemble swa_concatenated",
    ),
    ("okdph", {}, ["ema"], "ema_student_0 ema_student_1 ema_hybrid ema_center ema_ensemble"),
    (
      "okdph",
      {"fuse_with": "previous"},
      ["ema"],
      "ema_student_0 ema_student_1 ema_center ema_ensemble",
    ),
    ("base", {}, ["ema", "swa"], "ema_student_0 swa_student_0"),
    (
      "dml",
      {},
      ["ema", "reestimate"],
      "ema_student_0 ema_student_1 ema_ensemble "
      "reestimated_ema_student_0 reestimated_ema_student_1",
    ),
    (
      "mean_teacher",
      {},
      ["reestimate", "ema"],
      "reestimated_teacher ema_student_0",
    ),
  ],
)
def test_averages_are_read_once(name, options, wrappers, more):
  """What lies in the memory is the same in the average of the weights."""
  method = wrapped = METHODS[name](tiny.context(), **options)
  for wrapper in wrappers:
    wrapped = WRAPPERS[wrapper](wrapped, tiny.context())

  def readers(method):
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    views = jax.ShapeDtypeStruct((method.views, 2, 8, 8, 1), jnp.float32)
    learner = jax.eval_shape(method.init, KEY, views)
    single = jax.eval_shape(method.predict, learner, image)
    assert single.keys() == jax.eval_shape(method.networks, learner).keys()
    return {*single, *jax.eval_shape(method.ensembles, learner, image)}

  assert readers(wrapped) - readers(method) == set(more.split())


def kernel(params):
  return np.asarray(params["students"]["branch"]["Dense_0"]["kernel"])


def test_ema_averages_and_changes_nothing():
  method, learner, views = begin("dml")
  wrapped = WRAPPERS["ema"](method, None, decay=0.6)
  memory = {"ema": {"params": learner.params, "stats": learner.stats}}
  after = train(wrapped, learner.replace(memory=memory), 3).learner
  close(after.params, train(method, learner, 3).learner.params, 0, 0)
  average = None
  for t in range(4):
    now = kernel(train(method, learner, t).learner.params)
    d = min(1 - 1 / (t + 1), 0.6)
    average = now if average is None else d * average + (1 - d) * now
  close(kernel(after.memory["ema"]["params"]), average)


def test_wrappers_refuse_to_go_around_twice():
  method, _, views = begin("dml")
  twice = WRAPPERS["ema"](WRAPPERS["ema"](method, None), None)
  with pytest.raises(ValueError, match="config.wrappers has ema twice"):
    jax.eval_shape(twice.init, KEY, views.image)


def test_weighted_scales_the_two_terms():
  method, learner, views = begin("dml")
  wrapped = WRAPPERS["weighted"](method, None, task_weight=0.5, distill_weight=3.0)
  plain, scaled = (m.losses(learner, views, 0, KEY)[0] for m in (method, wrapped))
  np.testing.assert_allclose(scaled, [plain.task * 0.5, plain.distill * 3], rtol=1e-6)
  echo = method._replace(losses=lambda *given: (Terms(0.0, 0.0), given))
  assert WRAPPERS["weighted"](echo, None).losses(learner, views, 7, KEY)[1] == (
    (learner, views, 7, KEY)
  )


def test_nesterov_s_momentum_is_that_of_pytorch():
  tx = sgd(0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
  params, want, v = {"x": jnp.array(2.0)}, 2.0, 0.0
  state = tx.init(params)
  for t in range(1, 4):
    updates, state = tx.update({"x": jnp.array(0.3 * t)}, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    g = 0.3 * t + 0.01 * want
    v = 0.9 * v + g
    want -= 0.1 * (g + 0.9 * v)
  np.testing.assert_allclose(params["x"], want, rtol=1e-6)
  with pytest.raises(ValueError, match="dot has no Nesterov momentum"):
    dot_sgd(0.1, nesterov=True, delta=0.05)


def test_one_weight_decay_per_subtree():
  params = {"a": {"x": jnp.ones(2), "y": jnp.ones(())}, "b": jnp.ones(3)}
  tx = sgd(1.0, momentum=0.0, weight_decay={"a": 0.5, "b": 0.25})
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  close(updates, {"a": {"x": -0.5 * np.ones(2), "y": -0.5}, "b": -0.25 * np.ones(3)})


@pytest.mark.parametrize(
  "wrapper, options, says",
  [
    ("sam", dict(rho=-1.0), "sam: rho=-1.0 must lie in"),
    ("asam", dict(eta=np.inf), "asam: eta=inf"),
    ("ema", dict(decay=2.0), r"ema: decay=2.0 is outside \[0, 1\]"),
    ("swa", dict(start=-1), "swa: start=-1 must lie in"),
    ("swa", dict(start=10**6 + 1), "swa: start=1000001 must lie in"),
    ("swa", dict(learning_rate=np.nan), "swa: learning_rate=nan"),
    ("dot", dict(delta=-0.1), "dot: delta=-0.1"),
    ("weighted", dict(distill_weight=-1.0), "weighted: distill_weight=-1.0"),
    ("weighted", dict(task_weight=np.inf), "weighted: task_weight=inf"),
  ],
)
def test_options_of_wrappers_outside_their_bounds_are_refused(wrapper, options, says):
  context = tiny.context()
  with pytest.raises(ValueError, match=says) as error:
    WRAPPERS[wrapper](METHODS["base"](context), context, **options)
  assert "\n" not in str(error.value)


def test_building_a_wrapper_asks_for_no_backend(monkeypatch):
  def refuse():
    raise AssertionError("a backend was asked for while a method was built")

  monkeypatch.setattr(jax, "default_backend", refuse)
  context = tiny.context()
  for name in WRAPPERS:
    WRAPPERS[name](METHODS["base"](context), context)
