"""Accuracies of every reader against counting by hand; padding does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from okdph_jax import data, views
from okdph_jax.methods.okdph import okdph
from okdph_jax.methods.protocol import Context
from okdph_jax.runtime import host
from okdph_jax.training import evaluate
from tests.nets import Small


@pytest.mark.parametrize("size", [5, 23, 40])
def test_every_reader_is_counted_once_over_all_images(size):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (23, 6, 6, 1), dtype=np.uint8)
  labels = rng.integers(0, 3, 23).astype(np.int32)
  net = Small(3)
  method = okdph(Context(net, 3, 1, 1), same_init=False)
  learner = method.init(jax.random.key(0), jnp.zeros((3, 2, 6, 6, 1)))
  count = evaluate.counter(method, views.make(("plain",), (0.5,), (0.25,)))
  batches = data.Split(images, labels).padded(size, mesh=host.mesh())
  accuracy, nll = evaluate.evaluate(count, learner, batches, jax.random.key(0))

  x = (images / 255 - 0.5) / 0.25
  student = [jax.tree.map(lambda leaf, n=n: leaf[n], learner.students) for n in range(2)]
  r = learner.memory["weights"]
  readers = {f"student_{n}": net.apply(student[n], x, False) for n in range(2)}
  for name, (a, b) in {"hybrid": r, "center": (0.5, 0.5)}.items():
    mixed = jax.tree.map(lambda s, t, a=a, b=b: a * s + b * t, *student)
    readers[name] = net.apply(mixed, x, False)
  readers["ensemble"] = (readers["student_0"] + readers["student_1"]) / 2
  assert set(accuracy) == set(nll) == set(readers)
  for name, logits in readers.items():
    assert accuracy[name] == pytest.approx((np.argmax(logits, -1) == labels).mean())
    want = -log_softmax(np.asarray(logits), -1)[np.arange(23), labels].mean()
    assert nll[name] == pytest.approx(want, rel=1e-4)
