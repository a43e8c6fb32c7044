"""Each method's two terms against NumPy, written the long way, through its own `losses`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from okdph_jax.core import Outputs, Terms, Views
from okdph_jax.methods import METHODS
from okdph_jax.methods.kd import kd, smoothed
from okdph_jax.methods.kdcl import linear
from okdph_jax.methods.kr import residual_labels
from okdph_jax.methods.peers import peers
from okdph_jax.methods.protocol import Context
from okdph_jax.models import Net
from okdph_jax.schedules import average_decay, ramp
from tests.methods import tiny

B, K, F = 5, 4, 16
EPOCH = 3  # steps
STEP = 40 * EPOCH + 1  # in epoch 40 of 300
RAMP = np.exp(-5 * (1 - 40 / 80) ** 2)
rng = np.random.default_rng(0)
label = np.array([0, 3, 1, 1, 2], np.int32)


class Same(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return x * self.param("scale", nn.initializers.ones, ())


class Top(nn.Module):
  """Everything that a branch returns, from two parameters."""

  @nn.compact
  def __call__(self, x, train):
    flat = x.reshape(len(x), -1)
    kernel = self.param("kernel", nn.initializers.normal(0.3), (64, K))
    gain = self.param("gain", nn.initializers.normal(1.0), (F,))
    return Outputs(flat @ kernel, flat[:, :F] * gain, x[..., :1] * gain)


net = Net(Same(), Top(), "")


def context(teacher=None, epochs=300, epoch_steps=EPOCH):
  return Context(net, K, epoch_steps, epochs, teacher)


def begin(method, seed=0):
  """A learner with arbitrary parameters, and views."""
  local = np.random.default_rng(seed)
  image = local.normal(size=(method.views, B, 8, 8, 1)).astype(np.float32)
  learner = method.init(jax.random.key(seed), jnp.asarray(image))

  def noisy(path, x):
    return x if "stem" in str(path) else x + 0.3 * local.normal(size=x.shape).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(noisy, learner.params)
  return learner.replace(params=params), Views(image, label)


def measure(method, learner, views, step=STEP):
  terms, (learner, metrics) = method.losses(learner, views, step, jax.random.key(0))
  return terms, learner, metrics


def agrees(terms, task_loss, distill):
  np.testing.assert_allclose(terms.task, task_loss, rtol=2e-5)
  np.testing.assert_allclose(terms.distill, distill, rtol=2e-5, atol=1e-7)


# --- NumPy, one example at a time


def softmax(z, t=1.0):
  e = np.exp((z - z.max(-1, keepdims=True)) / t)
  return e / e.sum(-1, keepdims=True)


def ce(z, y=label):
  return np.mean([-np.log(softmax(z[b])[y[b]]) for b in range(len(y))])


def kl(teacher, student, t=1.0):
  """KL_T(teacher -> student), T^2 included."""
  total = 0.0
  for p, q in zip(softmax(teacher, t), softmax(student, t), strict=True):
    total += sum(p[c] * (np.log(p[c]) - np.log(q[c])) for c in range(len(p)))
  return t * t * total / len(teacher)


def pull(teacher, student, image, t=1.0):
  """The gradient of KL_T(sg[teacher] -> student) at the kernel of student = image @ kernel."""
  return t * image.reshape(B, -1).T @ (softmax(student, t) - softmax(teacher, t)) / B


def numbers(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def close(a, b):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), a, b)


def outputs(learner, image):
  """Per student: (flat image @ kernel, feature); image [N or 1, B, 8, 8, 1]."""
  students = numbers(learner.params["students"])
  students = students.get("branch", students)
  out = []
  for m in range(len(students["kernel"])):
    flat = image[min(m, len(image) - 1)].reshape(B, -1).astype(np.float64)
    out.append((flat @ students["kernel"][m], flat[:, :F] * students["gain"][m]))
  return [z for z, _ in out], [h for _, h in out]


def test_ramp_and_decays():
  def at(epoch):
    return ramp(epoch * EPOCH, epochs=300, epoch_steps=EPOCH)

  np.testing.assert_allclose([at(0), at(40), at(80), at(299)], [0.006738, 0.286505, 1, 1], 1e-4)
  assert at(40) == ramp(41 * EPOCH - 1, epochs=300, epoch_steps=EPOCH) < at(41)
  np.testing.assert_allclose(
    [average_decay(t, 0.999) for t in (1, 9, 998, 1000, 10**5)],
    [1 / 2, 9 / 10, 998 / 999, 0.999, 0.999],
    rtol=1e-6,
  )


def test_base_with_smoothed_labels():
  method = METHODS["base"](context(), students=2, label_smoothing=0.1)
  learner, views = begin(method)
  z, _ = outputs(learner, views.image)
  want = 0.0
  for m in range(2):
    for b in range(B):
      target = np.where(np.arange(K) == label[b], 0.9, 0.1 / (K - 1))
      want -= (target * np.log(softmax(z[m][b]))).sum() / B
  agrees(measure(method, learner, views)[0], want, 0)


@pytest.mark.parametrize("n", [2, 3])
def test_dml(n):
  method = METHODS["dml"](context(), students=n)
  learner, views = begin(method)
  z, _ = outputs(learner, views.image)
  pairs = [(z[j], m) for m in range(n) for j in range(n) if j != m]
  distill = sum(kl(teacher, z[m]) for teacher, m in pairs) / (n - 1)
  agrees(measure(method, learner, views)[0], sum(map(ce, z)), distill)
  got, want = kernels(distill_gradient(method, learner, views)), np.zeros((n, 64, K))
  for teacher, m in pairs:  # none reaches the teacher
    want[m] += pull(teacher, z[m], views.image[m]) / (n - 1)
  close(got, want)


@pytest.mark.parametrize("target", ["mean", "naive", "linear", "minlogit", "general"])
@pytest.mark.parametrize("n", [2, 3])
def test_kdcl(target, n):
  options = dict(task_weight=0.4, distill_weight=0.6, temperature=3.0)
  method = METHODS["kdcl"](context(), students=n, target=target, **options)
  learner, views = begin(method)
  if target == "general":
    weights = np.array([0.7, -0.2, 0.5])[:n]
    learner = learner.replace(memory=learner.memory | {"weights": jnp.asarray(weights)})
  z, _ = outputs(learner, views.image)
  teacher = np.zeros((B, K))
  for b in range(B):
    rows = np.stack([z[m][b] for m in range(n)])
    own = rows[:, label[b]]
    if target == "mean":
      teacher[b] = rows.mean(0)
    elif target == "naive":
      teacher[b] = rows[np.argmin([-np.log(softmax(r)[label[b]]) for r in rows])]
    elif target == "minlogit":
      teacher[b] = (rows - own[:, None]).min(0)
    elif target == "general":
      teacher[b] = weights @ rows
    else:
      teacher[b] = best_mixture(rows, label[b])
  want = [0.4 * sum(map(ce, z)), 0.6 * sum(kl(teacher, z[m], 3.0) for m in range(n))]
  terms = measure(method, learner, views)[0]
  np.testing.assert_allclose(terms, want, rtol=5e-3 if target == "linear" else 2e-5)
  if target == "mean":
    want = [0.6 * pull(teacher, z[m], views.image[m], 3.0) for m in range(n)]
    close(kernels(distill_gradient(method, learner, views)), np.stack(want))


def best_mixture(rows, y, grid=200):
  """By a search over a grid."""
  ticks = np.linspace(0, 1, grid + 1)
  if len(rows) == 2:
    weights = [(a, 1 - a) for a in ticks]
  else:
    weights = [(a, b, 1 - a - b) for a in ticks for b in ticks if a + b <= 1]
  mixed = np.asarray(weights) @ rows
  return mixed[np.argmin(-np.log(softmax(mixed)[:, y]))]


def test_kdcl_linear_finds_the_minimum():
  """Never above the best point of a grid, with logits as large as trained networks'."""
  for n in (2, 3, 4):
    z = np.random.default_rng(n).normal(size=(n, 64, 10)).astype(np.float32) * 5
    y = np.arange(64) % 10
    mixed = np.asarray(tiny.jit(linear)(z, y))
    loss = -np.log(softmax(mixed.astype(np.float64))[np.arange(64), y])
    trials = np.random.default_rng(1).dirichlet(np.full(n, 0.5), 400)
    trials = np.concatenate([np.eye(n), trials])
    for b in range(64):
      tried = -np.log(softmax((trials @ z[:, b]).astype(np.float64))[:, y[b]])
      assert loss[b] <= tried.min() + 1e-3, (n, b)


@pytest.mark.parametrize("target", ["mean", "naive", "linear", "minlogit", "general"])
def test_kdcl_of_equal_students_teaches_nothing(target):
  method = METHODS["kdcl"](context(), target=target)
  learner, views = begin(method)
  same = jax.tree.map(lambda x: jnp.stack([x[0]] * 2), learner.params)
  views = views._replace(image=np.stack([views.image[0]] * 2))
  terms, learner, _ = measure(method, learner.replace(params=same), views)
  np.testing.assert_allclose(terms.distill, 0, atol=1e-6)
  learner = method.after_step(learner, EPOCH, jax.random.key(0))
  if target == "general":  # C is singular; the weights are still a mean
    np.testing.assert_allclose(learner.memory["weights"], [0.5, 0.5], atol=1e-3)


def test_kdcl_general_weighs_by_the_errors_of_an_epoch():
  method = METHODS["kdcl"](context(), students=3, target="general")
  learner, views = begin(method)
  z, _ = outputs(learner, views.image)
  errors = [softmax(z[m]) - np.eye(K)[label] for m in range(3)]
  c = np.array([[(a * b).sum(-1).mean() for b in errors] for a in errors])
  for step in range(2 * EPOCH, 3 * EPOCH):  # the same batch thrice, no descent
    np.testing.assert_allclose(learner.memory["weights"], np.full(3, 1 / 3), rtol=1e-6)
    learner = measure(method, learner, views, step)[1]
    np.testing.assert_allclose(learner.memory["errors"], (step % EPOCH + 1) * c, rtol=1e-5)
    learner = method.after_step(learner, step + 1, jax.random.key(0))
  c = c + 1e-3 * np.trace(c) / 3 * np.eye(3)
  inverse = np.linalg.inv(c)
  np.testing.assert_allclose(
    learner.memory["weights"], inverse.sum(0) / inverse.sum(), rtol=1e-3
  )
  assert not learner.memory["errors"].any()


@pytest.mark.parametrize("detach", [True, False])
def test_one(detach):
  method = METHODS["one"](context(), detach_target=detach)
  learner, views = begin(method)
  z, _ = outputs(learner, views.image)
  gate = numbers(learner.params["shared"]["gate"])
  g = views.image[0].astype(np.float64).mean((1, 2)) @ gate["Dense_0"]["kernel"]
  g = g + gate["Dense_0"]["bias"]
  g = (g - g.mean(0)) / np.sqrt(g.var(0) + 1e-5)
  g = softmax(np.maximum(g * gate["BatchNorm_0"]["scale"] + gate["BatchNorm_0"]["bias"], 0))
  gated = sum(g[:, m, None] * z[m] for m in range(3))
  distill = RAMP * sum(kl(gated, z[m], 3.0) for m in range(3))
  agrees(measure(method, learner, views)[0], sum(map(ce, z)) + ce(gated), distill)
  assert reaches_shared(method, learner, views, "gate") == (not detach)


def test_one_with_a_one_hot_gate_is_its_branch():
  method = METHODS["one"](context())
  learner, views = begin(method)
  norm = {"scale": jnp.zeros(3), "bias": jnp.array([0.0, 100.0, 0.0])}
  learner.params["shared"]["gate"]["BatchNorm_0"] = norm
  readers = method.predict(learner, views.image[0]) | method.ensembles(learner, views.image[0])
  np.testing.assert_allclose(readers["gated"], readers["student_1"], rtol=1e-6)
  terms, *_ = measure(method, learner, views)
  z, _ = outputs(learner, views.image)
  agrees(terms, sum(map(ce, z)) + ce(z[1]), RAMP * (kl(z[1], z[0], 3.0) + kl(z[1], z[2], 3.0)))


@pytest.mark.parametrize("n", [2, 4])
def test_okddip(n):
  method = METHODS["okddip"](context(), students=n)
  learner, views = begin(method)
  z, h = outputs(learner, views.image)
  attention = numbers(learner.params["shared"]["attention"])
  q = [x @ attention["query"]["kernel"] for x in h[:-1]]
  k = [x @ attention["key"]["kernel"] for x in h[:-1]]
  distill = kl(sum(z[:-1]) / (n - 1), z[-1], 3.0)
  for i in range(n - 1):
    target = np.zeros((B, K))
    for b in range(B):
      a = softmax(np.array([q[i][b] @ k[j][b] for j in range(n - 1)]))
      target[b] = sum(a[j] * z[j][b] for j in range(n - 1))
    distill += kl(target, z[i], 3.0)
  agrees(measure(method, learner, views)[0], sum(map(ce, z)), RAMP * distill)
  # With a single peer, as in the release, its target is itself, and attention learns nothing
  assert reaches_shared(method, learner, views, "attention") == (n > 2)
  readers = method.predict(learner, views.image[0])
  assert [*readers] == [f"student_{m}" for m in range(n - 1)] + ["leader"]
  more = method.ensembles(learner, views.image[0])  # of the peers
  assert [*more] == ["ensemble"] * (n > 2)
  if n > 2:
    close(more["ensemble"], sum(z[:-1]) / (n - 1))


@pytest.mark.parametrize("detach", [True, False])
def test_okddip_s_leader_teaches_the_peers_unless_its_target_is_detached(detach):
  """A single peer is its own target: all it gets of the distillation comes from the leader."""
  method = METHODS["okddip"](context(), students=2, detach_mean=detach)
  learner, views = begin(method)
  z, _ = outputs(learner, views.image)
  peer, leader = kernels(distill_gradient(method, learner, views))
  close(leader, RAMP * pull(z[0], z[1], views.image[0], 3.0))
  assert (np.abs(peer).max() < 1e-6) == detach


def test_ffl():
  method = METHODS["ffl"](context(), students=3)
  learner, views = begin(method)
  z, _ = outputs(learner, views.image)
  gain = numbers(learner.params["students"]["gain"])
  maps = np.concatenate([views.image[0] * g for g in gain], -1)  # [B, 8, 8, N F]
  f = numbers(learner.params["shared"]["fusion"])

  def bn_relu(x, p):
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    return np.maximum(x * p["scale"] + p["bias"], 0)

  padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
  depthwise = f["Conv_0"]["kernel"][:, :, 0]  # [3, 3, N F]
  x = sum(padded[:, i : i + 8, j : j + 8] * depthwise[i, j] for i in range(3) for j in range(3))
  x = bn_relu(x, f["BatchNorm_0"])
  x = bn_relu(x @ f["Conv_1"]["kernel"][0, 0], f["BatchNorm_1"])
  fused = x.mean((1, 2)) @ f["Dense_0"]["kernel"] + f["Dense_0"]["bias"]
  distill = sum(kl(fused, z[m], 3.0) for m in range(3)) + kl(sum(z) / 3, fused, 3.0)
  agrees(measure(method, learner, views)[0], sum(map(ce, z)) + ce(fused), RAMP * distill)
  gradient = distill_gradient(method, learner, views)  # each learns from its own term alone
  want = [RAMP * pull(fused, z[m], views.image[0], 3.0) for m in range(3)]
  close(kernels(gradient), np.stack(want))
  bias = RAMP * 3 * (softmax(fused, 3.0) - softmax(sum(z) / 3, 3.0)).mean(0)
  close(gradient["shared"]["fusion"]["Dense_0"]["bias"], bias)


def test_ffl_decays_the_fusion_less():
  method = METHODS["ffl"](context(), fusion_weight_decay=0.01)
  learner, _ = begin(method)
  for decay, fusion in ((0.1, 0.01), (0.0, 0.0)):
    tx = method.optimizer(1.0, momentum=0.9, weight_decay=decay)
    zeros = jax.tree.map(jnp.zeros_like, learner.params)
    updates, _ = tx.update(zeros, tx.init(learner.params), learner.params)
    shared = updates["shared"]
    for rate, got, params in (
      (decay, updates["students"], learner.params["students"]),
      (decay, shared["stem"], learner.params["shared"]["stem"]),
      (fusion, shared["fusion"], learner.params["shared"]["fusion"]),
    ):
      close(got, jax.tree.map(lambda p, rate=rate: -rate * p, params))


def test_pcl():
  n = 3
  method = METHODS["pcl"](context(), students=n)
  learner, views = begin(method)  # the mean network is without begin's noise
  z, h = outputs(learner, views.image)
  mean, _ = outputs(learner.replace(params=learner.memory["mean"]["params"]), views.image)
  head = numbers(learner.params["shared"]["ensemble"]["Dense_0"])
  ensemble = np.concatenate(h, -1) @ head["kernel"] + head["bias"]
  distill, gradient = 0.0, np.zeros((n, 64, K))
  for m in range(n):
    for teacher, weight in [(ensemble, 1), *((mean[j], (j != m) / (n - 1)) for j in range(n))]:
      gradient[m] += RAMP * weight * pull(teacher, z[m], views.image[m], 3.0)
    distill += kl(ensemble, z[m], 3.0)
    distill += sum(kl(mean[j], z[m], 3.0) for j in range(n) if j != m) / (n - 1)
  agrees(measure(method, learner, views)[0], ce(ensemble) + sum(map(ce, z)), RAMP * distill)
  close(kernels(distill_gradient(method, learner, views)), gradient)
  assert not reaches_shared(method, learner, views, "ensemble")


def test_pcl_averages_what_it_deploys():
  method = METHODS["pcl"](context())
  learner, views = begin(method)
  start = numbers(learner.memory["mean"]["params"])
  moved = numbers(learner.params["students"])
  once = method.after_step(learner, 1, jax.random.key(0))
  got = once.memory["mean"]["params"]["students"]["kernel"]
  np.testing.assert_allclose(
    got, (start["students"]["kernel"] + moved["kernel"]) / 2, rtol=1e-5, atol=1e-6
  )
  late = method.after_step(learner, 1000, jax.random.key(0))
  got = late.memory["mean"]["params"]["students"]["kernel"]
  want = 0.999 * start["students"]["kernel"] + 0.001 * moved["kernel"]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert "ensemble" not in start["shared"]
  mean, _ = outputs(learner.replace(params=learner.memory["mean"]["params"]), views.image[:1])
  np.testing.assert_allclose(
    method.predict(learner, views.image[0])["mean_2"], mean[2], rtol=1e-4, atol=1e-5
  )


def test_pcl_updates_the_statistics_of_the_stem_view_by_view():
  """In order, and those of the mean network by its own passes."""
  method = METHODS["pcl"](tiny.context(), students=2)
  first, second = tiny.augment(2)(None, tiny.batch().image)
  views = Views(np.stack([first, 3 * second]), tiny.batch().label)
  learner = tiny.jit(method.init)(jax.random.key(0), views.image)
  _, after, _ = tiny.jit(lambda *a: measure(method, *a))(learner, views)
  stem = learner.variables("shared", "stem")
  want = stem["batch_stats"]
  for image in views.image:
    variables = stem | {"batch_stats": want}
    _, new = tiny.Stem().apply(variables, image, True, mutable=["batch_stats"])
    want = new["batch_stats"]
  close(after.stats["shared"]["stem"], want)
  close(after.memory["mean"]["stats"]["shared"]["stem"], want)


def test_kd_smoothed_keeps_the_confidence_and_forgets_the_other_classes():
  logits, label = jnp.array([[2.0, 1.0, -3.0], [0.0, 5.0, 1.0]]), jnp.array([0, 2])
  found = jax.nn.softmax(smoothed(logits, label, 4.0) / 4)
  kept = jax.nn.softmax(logits / 4)[jnp.arange(2), label]
  np.testing.assert_allclose(found[jnp.arange(2), label], kept, rtol=1e-5)
  np.testing.assert_allclose(found[0, 1:], (1 - kept[0]) / 2, rtol=1e-5)
  np.testing.assert_allclose(found[1, :2], (1 - kept[1]) / 2, rtol=1e-5)


def test_kd_soft_hard_and_smoothed():
  teacher = np.random.default_rng(5).normal(size=(64, K)).astype(np.float32)
  variables = {
    "params": {
      "stem": {"scale": np.float32(1)},
      "branch": {"kernel": teacher, "gain": np.ones(F, np.float32)},
    },
    "batch_stats": {},
  }
  for targets in ("soft", "hard", "smoothed"):
    options = dict(task_weight=0.1, distill_weight=0.9, temperature=4.0, targets=targets)
    method = kd(context((net, variables)), **options)
    learner, views = begin(method)
    (z,), _ = outputs(learner, views.image)
    taught = views.image[0].reshape(B, -1) @ teacher
    if targets == "smoothed":
      taught = np.asarray(smoothed(jnp.asarray(taught), jnp.asarray(label), 4.0))
    distill = ce(z, taught.argmax(-1)) if targets == "hard" else kl(taught, z, 4.0)
    agrees(measure(method, learner, views)[0], 0.1 * ce(z), 0.9 * distill)


def test_kr():
  method = METHODS["kr"](context())
  learner, views = begin(method)
  (z,), _ = outputs(learner, views.image)
  table = numbers(learner.params["shared"]["labels"])
  u = np.stack([np.delete(z[b], label[b]) for b in range(B)])
  row = table[label]
  wrong = np.mean(z.argmax(-1) != label)
  assert 0 < wrong < 1  # else the gain is not tested
  own = kl(u / 2, row)  # KL(softmax(u / tau) || softmax(R_y)), without tau^2
  for step, gain in ((STEP // EPOCH * EPOCH, wrong), (STEP, (0 + wrong * B) / (B + B))):
    memory = {"right": jnp.float32(B), "seen": jnp.float32(B)}  # a perfect batch before
    terms, after, _ = measure(method, learner.replace(memory=memory), views, step)
    agrees(terms, ce(z), gain * kl(row, u) + own)
  assert after.memory["seen"] == 2 * B
  gradient = distill_gradient(method, learner.replace(memory=memory), views)
  du = gain * (softmax(u) - softmax(row)) / B  # what teaches is constant in either term
  dz = np.stack([np.insert(du[b], label[b], 0) for b in range(B)])
  close(kernels(gradient), (views.image[0].reshape(B, -1).T @ dz)[None])
  rows = np.zeros((K, K - 1))
  np.add.at(rows, label, (softmax(row) - softmax(u / 2)) / B)
  close(gradient["shared"]["labels"], rows)
  plain = METHODS["kr"](context(), fade=False)
  assert not plain.init(jax.random.key(0), views.image).memory
  agrees(measure(plain, learner.replace(memory={}), views)[0], ce(z), kl(row, u) + own)


def test_kr_starts_uniform_or_from_distances():
  assert not residual_labels(None, K).any()
  distances = np.abs(np.arange(K)[:, None] - np.arange(K))
  table = residual_labels(distances, K)
  assert table.shape == (K, K - 1) and table[0, 0] > table[0, 1] > table[0, 2]
  np.testing.assert_allclose([table.mean(), table.std()], [0, 1], atol=1e-6)
  with pytest.raises(ValueError, match=r"shape \[2, 3\]; it must be \[4, 4\]"):
    METHODS["kr"](context(), distances=np.zeros((2, 3)))


def test_mean_teacher():
  method = METHODS["mean_teacher"](context())
  learner, views = begin(method)
  (z,), _ = outputs(learner, views.image[:1])
  teacher = learner.memory["teacher"]["params"]
  (t,), _ = outputs(learner.replace(params={"students": teacher}), views.image[1:])
  distance = np.mean([(np.square(softmax(z[b]) - softmax(t[b]))).mean() for b in range(B)])
  for epoch in (0, 2, 5, 100):
    weight = 10 * np.exp(-5 * (1 - min(epoch, 5) / 5) ** 2)
    agrees(measure(method, learner, views, epoch * EPOCH + 2)[0], ce(z), weight * distance)
  after = method.after_step(learner, 1, jax.random.key(0)).memory["teacher"]["params"]
  want = jax.tree.map(lambda a, b: (a + b) / 2, learner.params["students"], teacher)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after, want)


def test_errors_are_one_line():
  with pytest.raises(ValueError, match="dml needs at least 2 students; method.students is 1"):
    METHODS["dml"](context(), students=1)
  with pytest.raises(ValueError, match="kd needs a teacher"):
    METHODS["kd"](context())
  with pytest.raises(
    ValueError, match="'median' is not one of mean, naive, linear, minlogit, gen"
  ):
    METHODS["kdcl"](context(), target="median")
  image, seven = np.zeros((2, 8, 8, 1), np.float32), tiny.net(7)
  teacher = (seven, tiny.jit(lambda: tiny.start(seven, jax.random.key(0), image))())
  with pytest.raises(ValueError, match="the teacher has 7 classes and the data have 4"):
    kd(context(teacher)).init(jax.random.key(0), image[None])


def distill_gradient(method, learner, views):
  def distill(params):
    return measure(method, learner.replace(params=params), views)[0].distill

  return tiny.jit(jax.grad(distill))(learner.params)


def kernels(gradient):
  students = gradient["students"]
  return students.get("branch", students)["kernel"]


def reaches_shared(method, learner, views, name):
  """Whether the distillation term has a gradient at a shared module."""
  grads = distill_gradient(method, learner, views)["shared"][name]
  return max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-7


def test_the_criterion_of_peers_sees_logits_labels_and_the_step():
  method = peers(context(), 2, lambda z, y, step: Terms(z[1, 0, y[0]], 10.0 * step))
  learner, views = begin(method)
  z, _ = outputs(learner, views.image)
  agrees(measure(method, learner, views)[0], z[1][0, label[0]], 10.0 * STEP)
