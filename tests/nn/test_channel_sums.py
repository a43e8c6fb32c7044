"""The two sums of each channel: values, transposes, sharding (derivatives: test_batch_norm)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from okdph_jax.nn import onednn
from okdph_jax.nn.channel_sums import spread, sums

built = pytest.mark.skipif(
  onednn.choice().onednn is None, reason=f"convolutions: {onednn.choice()}"
)


def tensors(shape, stack=()):
  rng = np.random.default_rng(0)
  a, x = rng.normal(size=(2, *stack, *shape))
  return a, 3 + x, 3 + rng.normal(size=(*stack, shape[-1]))


@built
@pytest.mark.parametrize(  # registers full, several rows abreast with some left, wide, tiny
  "shape", [(9, 8, 8, 16), (2, 5, 7, 12), (3, 5, 130), (4, 1, 2, 2050), (1, 3), (300, 64)]
)
@pytest.mark.parametrize("openmp", [1, 2])
def test_values_are_those_of_double_precision(shape, openmp, monkeypatch):
  monkeypatch.setattr(onednn, "threads", lambda: openmp)
  a, x, center = tensors(shape, stack=(2,))
  x = x.astype(np.float32).astype(np.float64)
  center = center.astype(np.float32).astype(np.float64)
  axes = tuple(range(1, len(shape)))
  middle = center.reshape(2, *(1,) * (len(shape) - 1), -1)
  want = np.stack([a.sum(axes), (a * (x - middle)).sum(axes)], 1)
  operands = [jnp.asarray(t, jnp.float32) for t in (a, x, center)]
  got = jax.jit(jax.vmap(sums))(*operands)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * a.size**0.5)
  alone = jax.jit(lambda *operands: sums(*operands))  # traced anew
  for n in range(2):
    np.testing.assert_array_equal(alone(*(t[n] for t in operands)), got[n])


def test_each_is_the_transpose_of_the_other_and_mapped_over_any_operand():
  with jax.enable_x64(True):
    a, x, center = map(jnp.asarray, tensors((4, 3, 5)))
    c = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5)))
    image = jax.linear_transpose(lambda a: sums(a, x, center), a)(c)[0]
    np.testing.assert_allclose(image, spread(c, x, center))
    back = jax.linear_transpose(lambda c: spread(c, x, center), c)(a)[0]
    np.testing.assert_allclose(back, sums(a, x, center))
    many = jnp.stack([center, 2 * center])
    for axes, operands in (
      ((None, None, 0), (a, x, many)),
      ((0, None, None), (x[:2], x[0], center)),
    ):
      mapped = jax.vmap(sums, axes)(*operands)
      for n in range(2):
        each = [o if axis is None else o[n] for o, axis in zip(operands, axes, strict=True)]
        np.testing.assert_allclose(mapped[n], sums(*each))


@built
@pytest.mark.parametrize(
  "split", [P(None, "data"), P("data"), P()], ids=["batch", "stack", "none"]
)
def test_a_split_batch_or_stack_stays_where_it_is(split):
  if jax.device_count() < 2:
    pytest.skip("one device")
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  a, x, center = (jnp.asarray(t, jnp.float32) for t in tensors((6, 4, 4, 8), stack=(2,)))
  want = jax.jit(jax.vmap(sums))(a, x, center)
  a, x = jax.device_put((a, x), NamedSharding(mesh, split))
  center = jax.device_put(center, NamedSharding(mesh, P()))
  compiled = jax.jit(jax.vmap(sums)).lower(a, x, center).compile()
  text = compiled.as_text()
  assert onednn.SUMS in text and "all-gather" not in text and "all-to-all" not in text
  assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == (split == P(None, "data"))
  np.testing.assert_allclose(compiled(a, x, center), want, rtol=1e-5)
