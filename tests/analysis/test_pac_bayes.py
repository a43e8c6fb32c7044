"""PAC-Bayes quantities against the formulas by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from okdph_jax import models
from okdph_jax.analysis import pac_bayes

KEY = jax.random.key(0)


def test_kl_table_by_hand():
  w, w0 = 0.5, 0.2
  by_hand = 0.0
  for weight, start in ((w, w0), (-1.0, 0.0)):
    s, lam = math.exp(2 * abs(weight)), math.exp(-6)
    by_hand += (s / lam + (weight - start) ** 2 / lam - 1 + math.log(lam) - math.log(s)) / 2
  params = {"a": jnp.array([w]), "b": jnp.array([[-1.0]])}
  start = {"a": jnp.array([w0]), "b": jnp.array([[0.0]])}
  assert pac_bayes.kl_table(params, start) == pytest.approx(by_hand, rel=1e-6)


def test_kl_table_is_198_per_parameter_and_grows_with_the_norm():
  """The floors of Table S5: 198.214 d for small weights."""
  assert pac_bayes.kl_table({"w": np.zeros(1000)}) == pytest.approx(198_214, rel=1e-5)
  w = np.full(1000, 0.01)
  excess = pac_bayes.kl_table({"w": w}) - pac_bayes.kl_table({"w": 0 * w})
  assert excess == pytest.approx(402.4 * 10 + (403.4 + 201.7) * 0.1, rel=1e-3)


def test_table_s5_is_between_198_and_241_per_parameter():
  for network, of_datasets in pac_bayes.TABLE_S5.items():
    for classes, numbers in zip((10, 100), of_datasets, strict=True):
      count = models.parameters(models.build(network, classes), (32, 32, 3))
      assert all(198.214 < 1e6 * number / count < 241 for number in numbers)


def test_table_s5_stands_beside_runs_on_all_of_cifar():
  data = {"name": "cifar100", "fraction": 1.0}
  runs = [{"network": "resnet32", "data": data}] * 2
  runs += [{"network": "resnet8", "data": data}]
  runs += [{"network": "vgg16", "data": data | {"fraction": 0.1}}]
  assert pac_bayes.published(runs) == [
    "Table S5, resnet32 on cifar100 [10⁶ nats]: "
    "base 103.03, dml 102.43, kdcl 102.66, okdph 101.71"
  ]


def test_kl_of_a_distribution_with_itself_is_zero():
  params = {"w": jnp.array([1.0, -2.0])}
  same = {"w": jnp.full(2, 0.3)}
  assert pac_bayes.kl(params, params, same, 0.3) == pytest.approx(0, abs=1e-6)


def test_inverse_kl():
  assert pac_bayes.inverse_kl(0.0, 0.1) == pytest.approx(1 - math.exp(-0.1))
  p = pac_bayes.inverse_kl(0.2, 0.05)
  divergence = 0.2 * math.log(0.2 / p) + 0.8 * math.log(0.8 / (1 - p))
  assert p > 0.2 and divergence == pytest.approx(0.05)


def data():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(4, 50, 2)).astype(np.float32)
  return {"image": image, "label": (image[..., 0] > 0).astype(np.int32)}


def logits(params, batch):
  return jnp.stack([0 * batch["image"][..., 0], batch["image"] @ params["w"]], -1)


def loss(params, batch):
  rows = jax.nn.log_softmax(logits(params, batch))
  return -jnp.take_along_axis(rows, batch["label"][:, None], -1).mean() / math.log(2)


def error(params, batch):
  return (logits(params, batch).argmax(-1) != batch["label"]).mean()


def test_the_bound_holds_and_optimising_tightens_it():
  params, start = {"w": jnp.array([5.0, 0.0])}, {"w": jnp.zeros(2)}
  settings = dict(key=KEY, batches=data())
  first = pac_bayes.dziugaite_roy(loss, error, params, start, 200, **settings)
  better = pac_bayes.dziugaite_roy(loss, error, params, start, 200, steps=3000, **settings)
  assert first.train_error <= first.error and better.train_error <= better.error < 1
  assert better.kl < first.kl
  assert better.error < first.error
  j = pac_bayes.PRECISION * math.log(pac_bayes.SCALE / better.prior_variance)
  assert j == pytest.approx(round(j), abs=1e-2)


def test_sigma_search_of_a_threshold():
  """Accuracy is P(w + noise > 0), so a drop of 0.1 is where Phi(-w / sigma) = 0.1."""
  found = pac_bayes.sigma_search(
    lambda p: (p["w"] > 0).mean(), {"w": jnp.full(20_000, 0.5)}, key=KEY
  )
  assert found.sigma == pytest.approx(0.5 / 1.2816, rel=0.02)
  assert found.inverse_square == pytest.approx(1 / found.sigma**2)
  scaled = pac_bayes.sigma_search(
    lambda p: (p["w"] > 0).mean(), {"w": jnp.full(20_000, 0.5)}, key=KEY, relative=True
  )
  assert scaled.sigma == pytest.approx(1 / 1.2816, rel=0.02)
