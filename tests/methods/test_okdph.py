"""OKDPH against its equations: one gradient per student, Algorithm 1 by hand, and fusion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from okdph_jax.core import Batch, Views
from okdph_jax.hybridization import dirichlet, fuse, hybridize, uniform
from okdph_jax.methods import METHODS
from okdph_jax.methods.okdph import fusion_clock, okdph
from okdph_jax.methods.protocol import Context
from okdph_jax.training.step import initial_state, train_step

N, B, K, EPOCH = 3, 6, 4, 5
OPTIONS = dict(
  students=N, omega=0.7, beta=0.6, gamma=0.3, fuse_every="2 steps", same_init=False
)


class Smooth(nn.Module):
  """Convolution, batch statistics and a smooth activation: differentiable everywhere."""

  classes: int = K

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(3, (3, 3), strides=2, padding=1, use_bias=False)(x)
    x = nn.softplus(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    return nn.Dense(self.classes)(x.mean((1, 2)))


class Linear(nn.Module):
  """logits = x w: Algorithm 1 can be written out in NumPy."""

  classes: int = K

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(self.classes, use_bias=False)(x.reshape(len(x), -1))


def context(net):
  return Context(net, K, EPOCH, epochs=3)


def views_of(method, size=4):
  image = jax.random.normal(jax.random.key(1), (method.views, B, size, size, 1))
  return Views(image.astype(jnp.zeros(()).dtype), jnp.arange(B) % K)


def gradients(method, learner, views):
  def objective(params):
    return method.losses(learner.replace(params=params), views, 0, jax.random.key(2))

  return method.gradient(objective, learner.params)[0]["students"]


def own_loss(net, learner, views, m, theta_m, *, hybrid_gradient=True, hybrid_teaches=True):
  """Eq. 8 of student m, the other students being constants: written out."""
  r = learner.memory["weights"]

  def take(i):
    return jax.tree.map(lambda leaf: leaf[i], learner.students)

  students = [take(i) for i in range(N)]
  students[m] = {"params": theta_m, "batch_stats": students[m]["batch_stats"]}
  hybrid = jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(r, leaves)), *students)  # noqa: B905
  if not hybrid_gradient:
    hybrid = jax.lax.stop_gradient(hybrid)

  def logits(variables, x):
    return net.apply(variables, x, True, mutable=["batch_stats"])[0]

  z = [logits(s, x) for s, x in zip(students, views.image[:N], strict=True)]
  z_h = logits(hybrid, views.image[N])
  z_en = jax.lax.stop_gradient((sum(z) + z_h) / (N + 1) if hybrid_teaches else sum(z) / N)

  def ce(z):
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(B), views.label])

  p = jax.nn.softmax(z_en / 4)
  kd = 16 * jnp.mean(jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(z[m] / 4)), -1))
  return 0.7 * ce(z[m]) + 0.3 * ce(z_h) + 0.6 * kd


@pytest.mark.parametrize(
  "switches", [{}, {"hybrid_gradient": False}, {"hybrid_teaches": False}], ids=str
)
def test_each_student_gets_the_gradient_of_its_own_loss(switches):
  with jax.enable_x64(True):
    net = Smooth()
    method = okdph(context(net), **OPTIONS, **switches)
    views = views_of(method)
    learner = method.init(jax.random.key(0), views.image)
    learner = jax.tree.map(lambda x: x.astype(jnp.float64), learner)
    got = gradients(method, learner, views)
    for m in range(N):
      theta = jax.tree.map(lambda leaf, m=m: leaf[m], learner.params["students"])

      def loss(theta, m=m):
        return own_loss(net, learner, views, m, theta, **switches)

      want = jax.grad(loss)(theta)
      mine = jax.tree.map(lambda leaf, m=m: leaf[m], got)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), mine, want
      )
      if switches:  # finite differences know no stop_gradient
        continue
      # z_en is detached: hold it by moving the teacher out, i.e. differentiate with beta's
      # teacher fixed, along one random direction.
      direction = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(7), leaf.shape, leaf.dtype), theta
      )
      numeric = central_difference(net, learner, views, m, theta, direction)
      inner = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.vdot(a, b), mine, direction)))
      np.testing.assert_allclose(inner, numeric, rtol=1e-6)


def central_difference(net, learner, views, m, theta, direction, eps=1e-5):
  """Of Eq. 8 with the detached z_en held at its value: what descent should follow."""
  r = learner.memory["weights"]
  params = learner.params["students"]

  def logits(p, n, x):
    variables = {
      "params": p,
      "batch_stats": jax.tree.map(lambda s: s[n], learner.stats["students"]),
    }
    return net.apply(variables, x, True, mutable=["batch_stats"])[0]

  def all_logits(theta):
    stack = jax.tree.map(lambda leaf, t: leaf.at[m].set(t), params, theta)
    z = [logits(jax.tree.map(lambda p, n=n: p[n], stack), n, views.image[n]) for n in range(N)]
    hybrid = jax.tree.map(lambda leaf: jnp.einsum("n,n...->...", r, leaf), stack)
    return z, logits(hybrid, 0, views.image[N])

  z, z_h = all_logits(theta)
  p = jax.nn.softmax((sum(z) + z_h) / (N + 1) / 4)

  def value(t):
    z, z_h = all_logits(jax.tree.map(lambda a, d: a + t * d, theta, direction))
    picked = jnp.arange(B), views.label
    ce = -jax.nn.log_softmax(z[m])[picked].mean()
    ce_h = -jax.nn.log_softmax(z_h)[picked].mean()
    kd = 16 * (p * (jnp.log(p) - jax.nn.log_softmax(z[m] / 4))).sum(-1).mean()
    return 0.7 * ce + 0.3 * ce_h + 0.6 * kd

  return (value(eps) - value(-eps)) / (2 * eps)


def test_the_hybrids_view_reaches_the_students_only_through_the_true_gradient():
  """With beta = 0 only the hybrid's own loss depends on its view; in the release none does."""
  views = views_of(okdph(context(Smooth()), **OPTIONS))
  other = views._replace(image=views.image.at[N].add(1.0))
  for hybrid_gradient, moves in [(True, True), (False, False)]:
    options = OPTIONS | dict(beta=0.0, hybrid_gradient=hybrid_gradient)
    method = okdph(context(Smooth()), **options)
    learner = method.init(jax.random.key(0), views.image)
    a, b = gradients(method, learner, views), gradients(method, learner, other)
    differ = [bool((x != y).any()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    assert any(differ) == moves


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_three_steps_equal_algorithm_1_written_in_numpy():
  """Linear students: gradients, SGD with coupled decay, the new r, and fusion, by hand."""
  lr, momentum, decay, omega, beta, gamma, T = 0.5, 0.9, 0.01, 0.7, 0.6, 0.3, 4.0
  method = okdph(context(Linear()), **OPTIONS)
  tx = method.optimizer(lr, momentum=momentum, weight_decay=decay)
  images = np.asarray(views_of(method).image)
  label = np.arange(B) % K
  batch, key = Batch(jnp.zeros((B, 4, 4, 1), jnp.uint8), jnp.asarray(label)), jax.random.key(3)

  def augment(key, image):
    del key, image
    return jnp.asarray(images)

  state = initial_state(method, tx, augment, batch, key)
  step = jax.jit(lambda state: train_step(method, tx, augment, state, batch, key)[0])
  theta = np.array(state.learner.params["students"]["Dense_0"]["kernel"], np.float64)
  r = np.array(state.learner.memory["weights"], np.float64)
  velocity = np.zeros_like(theta)
  x = images.reshape(N + 1, B, -1).astype(np.float64)
  onehot = np.eye(K)[label]

  for t in (1, 2, 3):
    hybrid = np.einsum("n,nij->ij", r, theta)
    z = np.einsum("nbi,nik->nbk", x[:N], theta)
    z_h = x[N] @ hybrid
    teacher = softmax((z.sum(0) + z_h) / (N + 1) / T)
    grad_h = x[N].T @ (softmax(z_h) - onehot) / B
    grad = np.stack(
      [
        omega * x[m].T @ (softmax(z[m]) - onehot) / B
        + (1 - omega) * r[m] * grad_h
        + beta * T * x[m].T @ (softmax(z[m] / T) - teacher) / B
        for m in range(N)
      ]
    )
    velocity = momentum * velocity + grad + decay * theta
    theta = theta - lr * velocity

    state = step(state)
    r = np.array(state.learner.memory["weights"], np.float64)  # drawn after the update
    if t == 2:
      theta = gamma * np.einsum("n,nij->ij", r, theta) + (1 - gamma) * theta
    got = state.learner.params["students"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(got, theta, rtol=2e-4, atol=2e-5)
  trace = optax.tree_utils.tree_get(state.opt_state, "trace")
  np.testing.assert_allclose(
    trace["students"]["Dense_0"]["kernel"], velocity, rtol=2e-3, atol=2e-4
  )


def test_the_release_fuses_with_the_hybrid_of_its_forward_pass_and_drops_the_step():
  """With gamma = 1 and `previous`, the update just made remains in the momentum alone."""
  options = OPTIONS | dict(
    fuse_with="previous", weights="uniform", gamma=1.0, fuse_clock="epoch"
  )
  method = okdph(context(Smooth()), **options)
  views = views_of(method)
  tx = method.optimizer(0.1, momentum=0.9, weight_decay=0.0)
  batch, key = Batch(jnp.zeros((B, 4, 4, 1), jnp.uint8), views.label), jax.random.key(3)

  def augment(key, image):
    return views.image

  state = initial_state(method, tx, augment, batch, key)
  before = hybridize(state.learner.students, uniform(N))
  state, _ = train_step(method, tx, augment, state, batch, key)  # the epoch's first batch fuses
  for m in range(N):
    jax.tree.map(
      lambda a, b, m=m: np.testing.assert_allclose(a[m], b, rtol=1e-6),
      state.learner.params["students"],
      before["params"],
    )
  mean = state.learner.stats["students"]["BatchNorm_0"]["mean"]
  # those of the hybrid's forward pass, which updated them
  assert np.abs(mean - before["batch_stats"]["BatchNorm_0"]["mean"]).max() > 1e-4
  trace = optax.tree_utils.tree_get(state.opt_state, "trace")
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(trace)) > 0


def test_without_a_hybrid_loss_nothing_differentiates_through_the_hybrid():
  method = okdph(context(Smooth()), **OPTIONS | dict(omega=1.0))
  views = views_of(method)
  learner = method.init(jax.random.key(0), views.image)
  a = gradients(method, learner, views)
  off = okdph(context(Smooth()), **OPTIONS | dict(omega=1.0, hybrid_gradient=False))
  jax.tree.map(np.testing.assert_array_equal, a, gradients(off, learner, views))
  alone = okdph(context(Smooth()), **OPTIONS | dict(omega=1.0, hybrid_teaches=False))
  lost = views._replace(image=views.image.at[N].set(np.inf))  # not even times zero
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients(alone, learner, lost)))


@pytest.mark.parametrize(
  "every, clock, epoch_steps, want",
  [
    ("5 steps", "run", 4, [5, 10]),
    ("1 epoch", "run", 4, [4, 8, 12]),
    ("2 epochs", "run", 4, [8]),
    ("5 steps", "epoch", 4, [1, 5, 9]),  # once an epoch, its first batch
    ("2 steps", "epoch", 4, [1, 3, 5, 7, 9, 11]),
    ("1 epoch", "epoch", 4, [4, 8, 12]),
    ("2 epochs", "epoch", 4, [4, 12]),  # epochs 0 and 2
    ("3 epochs", "epoch", 2, [2, 8]),
  ],
)
def test_when_fusion_is_due(every, clock, epoch_steps, want):
  due = fusion_clock(every, clock, epoch_steps)
  assert [t for t in range(1, 13) if due(t)] == want


def test_the_release_fuses_79_times_in_an_epoch_of_cifar():
  due = fusion_clock("5 steps", "epoch", 391)
  assert sum(bool(due(t)) for t in range(1, 392)) == 79 and due(391) and due(392)


@pytest.mark.parametrize(
  "name, options",
  [("base", dict(students=3)), ("dml", {}), ("kdcl", {}), ("kdcl", dict(target="general"))],
)
def test_other_students_start_where_okdph_s_do_on_request(name, options):
  own = okdph(context(Smooth()))
  begin = own.init(jax.random.key(0), views_of(own).image).params["students"]["Conv_0"][
    "kernel"
  ]
  for same in (True, False):
    method = METHODS[name](context(Smooth()), **options, same_init=same)
    start = method.init(jax.random.key(0), views_of(method).image)
    first, *others = start.params["students"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(first, begin[0])
    assert all(bool((other == first).all()) == same for other in others)


def test_students_start_equal_by_default():
  for same in (True, False):
    learner_of = okdph(context(Smooth()), **OPTIONS | dict(same_init=same)).init
    kernel = learner_of(jax.random.key(0), views_of(okdph(context(Smooth()), **OPTIONS)).image)
    kernel = kernel.params["students"]["Conv_0"]["kernel"]
    assert bool((kernel[0] == kernel[1]).all()) == same


@pytest.mark.parametrize(
  "wrong, says",
  [
    (dict(students=1), "at least 2"),
    (dict(gamma=1.5), r"gamma=1.5 is outside \[0, 1\]"),
    (dict(omega=-0.1), "omega=-0.1"),
    (dict(fuse_every="often"), "'often' is not a duration"),
    (dict(fuse_with="next"), "updated, previous"),
    (dict(weights="beta"), "dirichlet, uniform"),
    (dict(alpha=0.0), "alpha"),
    (dict(alpha=(1.0, 2.0)), r"alpha=\(1.0, 2.0\) has 2 numbers for 3 students"),
    (dict(alpha=(1.0, 0.0, 2.0)), "alpha=0.0 must lie in"),
    (dict(alpha=np.inf), "alpha=inf must lie in"),
    (dict(beta=np.nan), "beta=nan must lie in"),
    (dict(beta=-1.0), "beta=-1.0"),
    (dict(temperature=0.0), "temperature=0.0"),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, says):
  with pytest.raises(ValueError, match=says) as error:
    okdph(context(Smooth()), **OPTIONS | wrong)
  assert "\n" not in str(error.value)


def test_fusion_leaves_the_hybrid_where_it_is():
  stack = {
    "w": jax.random.normal(jax.random.key(0), (N, 5, 2)),
    "b": jnp.arange(6.0).reshape(N, 2),
  }
  r = dirichlet(jax.random.key(1), N)
  hybrid = hybridize(stack, r)
  np.testing.assert_allclose(
    hybrid["w"], sum(np.asarray(r)[m] * stack["w"][m] for m in range(N)), rtol=1e-5
  )
  fused = fuse(stack, hybrid, 0.3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    hybridize(fused, r),
    hybrid,
  )
  jax.tree.map(np.testing.assert_array_equal, fuse(stack, hybrid, 0.0), stack)
  for leaf, h in zip(*map(jax.tree.leaves, (fuse(stack, hybrid, 1.0), hybrid)), strict=True):
    assert (np.asarray(leaf) == np.asarray(h)).all()


def test_dirichlet_weights_are_uniform_over_the_simplex():
  """Dir(1, ..., 1): mean 1/N, variance (N - 1) / (N^2 (N + 1)), every corner as likely."""
  r = np.asarray(
    jax.vmap(lambda key: dirichlet(key, N))(jax.random.split(jax.random.key(0), 20000))
  )
  np.testing.assert_allclose(r.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(r.mean(0), 1 / N, atol=0.01)
  np.testing.assert_allclose(r.var(0), (N - 1) / (N**2 * (N + 1)), atol=0.003)
  assert (r > 0).all()


@pytest.mark.parametrize("fuse_with", ["updated", "previous"])
def test_fusion_moves_batch_statistics_as_it_moves_parameters(fuse_with):
  gamma = 0.3
  options = OPTIONS | dict(fuse_every="1 step", fuse_with=fuse_with, gamma=gamma)
  method = okdph(context(Smooth()), **options)
  learner = method.init(jax.random.key(0), views_of(method).image)
  distinct = jax.tree.map(  # as after training: they start equal
    lambda x: x + jax.random.normal(jax.random.key(5), x.shape), learner.stats["students"]
  )
  learner = learner.with_stats(students=distinct)
  fused = method.after_step(learner, 1, jax.random.key(6))
  hybrid = (
    learner.memory["hybrid"]
    if fuse_with == "previous"
    else hybridize(learner.students, fused.memory["weights"])
  )
  for kind in ("params", "batch_stats"):
    jax.tree.map(
      lambda new, old, h: np.testing.assert_allclose(
        new, gamma * h + (1 - gamma) * old, rtol=1e-5, atol=1e-6
      ),
      fused.students[kind],
      learner.students[kind],
      hybrid[kind],
    )


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_dirichlet_weights_concentrate_with_alpha(alpha):
  """Var r_m = (1/N) (1 - 1/N) / (N alpha + 1)."""
  keys = jax.random.split(jax.random.key(0), 20000)
  r = np.asarray(jax.vmap(lambda key: dirichlet(key, N, alpha))(keys))
  np.testing.assert_allclose(r.mean(0), 1 / N, atol=0.01)
  np.testing.assert_allclose(r.var(0), (N - 1) / N**2 / (N * alpha + 1), rtol=0.05)


def test_okdph_draws_its_weights_with_alpha():
  spread = {}
  for alpha in (0.01, 1000.0):
    method = okdph(context(Smooth()), **OPTIONS | dict(alpha=alpha))
    learner = method.init(jax.random.key(0), views_of(method).image)
    drawn = [learner.memory["weights"]]
    drawn += [
      method.after_step(learner, 1, jax.random.key(k)).memory["weights"] for k in (1, 2)
    ]
    spread[alpha] = np.std(drawn, axis=1)
  assert (spread[1000.0] < 0.05).all() and (spread[0.01] > 0.3).all()


def test_dirichlet_weights_follow_an_alpha_for_each_student():
  """E r_m = alpha_m / sum alpha."""
  alpha = (1.0, 2.0, 5.0)
  keys = jax.random.split(jax.random.key(0), 20000)
  r = np.asarray(jax.vmap(lambda key: dirichlet(key, N, alpha))(keys))
  np.testing.assert_allclose(r.mean(0), np.divide(alpha, 8), atol=0.01)
  same = dirichlet(keys[0], N, (2.0,) * N), dirichlet(keys[0], N, 2.0)
  np.testing.assert_array_equal(*same)
  method = okdph(context(Smooth()), **OPTIONS | dict(alpha=(1000.0, 1.0, 1.0)))
  learner = method.init(jax.random.key(0), views_of(method).image)
  assert method.after_step(learner, 1, jax.random.key(1)).memory["weights"][0] > 0.9


@pytest.mark.parametrize("fuse_with", ["updated", "previous"])
def test_the_release_reads_the_hybrid_of_its_last_forward_pass(fuse_with):
  """The paper's is that of the students as they are."""
  method = okdph(context(Smooth()), **OPTIONS | dict(fuse_with=fuse_with, weights="uniform"))
  views = views_of(method)
  before = method.init(jax.random.key(0), views.image)
  _, (after, _) = method.losses(before, views, 0, jax.random.key(2))
  moved = after.replace(params=jax.tree.map(lambda x: x + 1, after.params))
  want = hybridize(moved.students, uniform(N))
  if fuse_with == "previous":
    last = hybridize(before.students, uniform(N))
    _, new = Smooth().apply(last, views.image[N], True, mutable=["batch_stats"])
    want = {"params": last["params"], "batch_stats": new["batch_stats"]}
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, method.networks(moved)["hybrid"], want)


def test_the_hybrid_is_mixed_in_float32_with_full_precision():
  with jax.enable_x64(True):
    assert uniform(N).dtype == jnp.float32
  np.testing.assert_allclose(uniform(N), 1 / N, rtol=1e-6)
  program = str(jax.make_jaxpr(hybridize)({"w": jnp.ones((N, 2))}, uniform(N)))
  assert "dot_general" in program and "HIGHEST" in program
