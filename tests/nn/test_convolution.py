"""The convolution against `lax`'s, under every composition that training and analysis use."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from okdph_jax.nn import convolution_cpu, onednn
from okdph_jax.nn.convolution import Geometry, conv_general_dilated
from okdph_jax.runtime import host

N, B = 2, 4


def pair(conv, x, w, **options):
  """Two convolutions with something nonlinear between: [B, 6, 6, 4] -> scalar."""
  options = {"window_strides": (1, 1), "padding": "SAME"} | options
  options |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
  return (conv(jnp.sin(conv(x, w, **options)), w, **options) ** 2).sum()


def tensors(dtype=jnp.float32, groups=1):
  image, kernel, dx, dw = jax.random.split(jax.random.key(0), 4)
  xs, ws = (N, B, 6, 6, 4), (N, 3, 3, 4 // groups, 4)
  x, w = jax.random.normal(image, xs, dtype), 0.3 * jax.random.normal(kernel, ws, dtype)
  return x, w, jax.random.normal(dx, xs, dtype), jax.random.normal(dw, ws, dtype)


def same(transform, *args, rtol=2e-5, **options):
  """`transform(f, *args)` is the same for ours and `lax`'s convolution."""
  got, want = (
    jax.jit(lambda *a, conv=conv: transform(partial(pair, conv, **options), *a))(*args)
    for conv in (conv_general_dilated, lax.conv_general_dilated)
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def hvp(f, x, w, dx, dw):
  return jax.jvp(jax.grad(f, (0, 1)), (x, w), (dx, dw))[1]


COMPOSITIONS = {
  "value": lambda f, x, w, dx, dw: f(x[0], w[0]),
  "grad": lambda f, x, w, dx, dw: jax.grad(f, (0, 1))(x[0], w[0]),
  "vmap": lambda f, x, w, dx, dw: jax.vmap(f)(x, w),
  "vmap(grad)": lambda f, x, w, dx, dw: jax.vmap(jax.grad(f, (0, 1)))(x, w),
  "grad(sum(vmap))": lambda f, x, w, dx, dw: jax.grad(
    lambda x, w: jax.vmap(f)(x, w).sum(), (0, 1)
  )(x, w),
  "jvp": lambda f, x, w, dx, dw: jax.jvp(f, (x[0], w[0]), (dx[0], dw[0])),
  "jvp(vmap)": lambda f, x, w, dx, dw: jax.jvp(jax.vmap(f), (x, w), (dx, dw)),
  "jvp(grad)": lambda f, x, w, dx, dw: hvp(f, x[0], w[0], dx[0], dw[0]),
  "vmap(jvp(grad))": lambda f, *a: jax.vmap(partial(hvp, f))(*a),
  "grad(grad)": lambda f, x, w, dx, dw: jax.grad(
    lambda w: (jax.grad(f, 1)(x[0], w) * dw[0]).sum()
  )(w[0]),
  "one kernel for all": lambda f, x, w, dx, dw: jax.vmap(jax.grad(f, (0, 1)), (0, None))(
    x, w[0]
  ),
  "one image for all": lambda f, x, w, dx, dw: jax.vmap(jax.grad(f, (0, 1)), (None, 0))(
    x[0], w
  ),
  "vmap of a tangent": lambda f, x, w, dx, dw: jax.vmap(lambda d: hvp(f, x[0], w[0], dx[0], d))(
    dw
  ),
  "last axis mapped": lambda f, x, w, dx, dw: jax.vmap(f, (-1, -1))(
    jnp.moveaxis(x, 0, -1), jnp.moveaxis(w, 0, -1)
  ),
  "vmap(vmap)": lambda f, x, w, dx, dw: jax.vmap(jax.vmap(f, (None, 0)), (0, None))(x, w),
  "grad(checkpoint(vmap))": lambda f, x, w, dx, dw: jax.grad(
    lambda w: jax.checkpoint(jax.vmap(f))(x, w).sum()
  )(w),
  "scan": lambda f, x, w, dx, dw: lax.scan(
    lambda w, _: (w - 1e-4 * jax.grad(lambda w: jax.vmap(f)(x, w).sum())(w), None), w, length=2
  )[0],
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions_equal_lax(name):
  same(COMPOSITIONS[name], *tensors())


GEOMETRIES = {
  "stride": dict(window_strides=(2, 1)),
  "valid": dict(padding="VALID"),
  "uneven padding": dict(padding=((2, 0), (1, 3))),
  "negative padding": dict(padding=((1, -1), (1, 1))),
  "dilated kernel": dict(rhs_dilation=(2, 1)),
  "dilated image": dict(lhs_dilation=(1, 2), padding=((1, 1), (1, 1))),
  "highest": dict(precision="highest"),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries_equal_lax(name):
  same(COMPOSITIONS["vmap(grad)"], *tensors(), **GEOMETRIES[name])


@pytest.mark.parametrize("name", ["vmap(grad)", "one kernel for all", "jvp(grad)"])
def test_groups_equal_lax(name):
  same(COMPOSITIONS[name], *tensors(groups=2), feature_group_count=2)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_depthwise_equals_lax(name):
  options = GEOMETRIES[name] | {"feature_group_count": 4}
  same(COMPOSITIONS["grad"], *tensors(groups=4), **options)


FORMS = {  # (image, kernel, stride) -> how each target is asked for on a CPU
  "narrow": ((4, 6, 8, 3), (3, 3, 3, 16), 1, ("_two_pixels_at_once", "convolve")),
  "narrow, odd": ((4, 6, 7, 3), (3, 3, 3, 16), 1, ("convolve", "convolve")),
  "narrow, strided": ((4, 6, 8, 3), (3, 3, 3, 16), 2, ("convolve", "convolve")),
  "two pieces": ((32, 4, 4, 3), (3, 3, 3, 96), 1, ("convolve", "_in_pieces")),
  "two pieces, strided": ((32, 4, 4, 3), (3, 3, 3, 96), 2, ("convolve", "_in_pieces")),
  "eight large pieces": ((144, 4, 4, 3), (3, 3, 3, 96), 1, ("convolve", "_in_pieces")),
  "no whole pieces": ((20, 4, 4, 3), (3, 3, 3, 96), 1, ("convolve", "convolve")),
  "1x1": ((4, 4, 4, 3), (1, 1, 3, 24), 1, ("_product_of_patches",) * 2),
  "1x1, strided": ((4, 5, 4, 3), (1, 1, 3, 24), 2, ("_product_of_patches",) * 2),
  "map of 2x2": ((4, 2, 2, 3), (3, 3, 3, 24), 1, ("_product_of_patches",) * 2),
  "map of 3x2, strided": ((4, 3, 2, 3), (3, 3, 3, 24), 2, ("_product_of_patches",) * 2),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_the_cpu_equal_lax(name, monkeypatch):
  """The output and both gradients, for each shape that XLA:CPU is asked about differently."""
  monkeypatch.setattr(onednn, "takes", lambda *_: False)
  monkeypatch.setattr(host, "cpu_flags", frozenset)
  image, kernel, stride, (forward, backward) = FORMS[name]
  x, w = (
    jax.random.normal(jax.random.key(i), (N, *shape)) for i, shape in enumerate((image, kernel))
  )
  padding = [((k - 1) // 2,) * 2 for k in kernel[:2]]
  options = dict(window_strides=(stride, stride), padding=padding)

  def outs(conv, x, w):
    y = conv(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)
    return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

  def all_three(conv, x, w):
    (_, y), gradients = jax.vmap(jax.value_and_grad(partial(outs, conv), (0, 1), has_aux=True))(
      x, w
    )
    return y, gradients

  got, want = (
    jax.jit(partial(all_three, conv))(x, w)
    for conv in (conv_general_dilated, lax.conv_general_dilated)
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())

  dimensions = lax.conv_dimension_numbers(image, kernel, ("NHWC", "HWIO", "NHWC"))
  geometry = Geometry((stride,) * 2, padding, (1, 1), (1, 1), dimensions, 1, None)
  taken = [
    convolution_cpu._form(target, geometry, image, kernel).__name__ for target in ("out", "rhs")
  ]
  assert taken == [forward, backward]


def test_with_avx512_only_wide_kernel_gradients_are_taken_in_pieces(monkeypatch):
  monkeypatch.setattr(host, "cpu_flags", lambda: {"avx512f"})

  def form(width):
    image, kernel = (32, 4, 4, 3), (3, 3, 3, width)
    dimensions = lax.conv_dimension_numbers(image, kernel, ("NHWC", "HWIO", "NHWC"))
    geometry = Geometry((1, 1), ((1, 1),) * 2, (1, 1), (1, 1), dimensions, 1, None)
    return convolution_cpu._form("rhs", geometry, image, kernel).__name__

  assert [form(96), form(128)] == ["convolve", "_in_pieces"]


def test_half_precision_equals_lax():
  same(COMPOSITIONS["vmap(grad)"], *tensors(jnp.bfloat16), rtol=2e-2)


def test_finite_differences_agree_in_double_precision():
  with jax.enable_x64(True):
    x, w, _, dw = tensors(jnp.float64)
    f = jax.jit(lambda w: jax.vmap(partial(pair, conv_general_dilated))(x, w).sum())
    slope = jax.jvp(f, (w,), (dw,))[1]
    np.testing.assert_allclose((f(w + 1e-6 * dw) - f(w - 1e-6 * dw)) / 2e-6, slope, rtol=1e-7)
    np.testing.assert_allclose((jax.grad(f)(w) * dw).sum(), slope, rtol=1e-12)


def test_eager_and_shapes():
  x, w, *_ = tensors()
  options = {"window_strides": (2, 2), "padding": "SAME"}
  options |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
  conv = partial(conv_general_dilated, **options)
  want = lax.conv_general_dilated(x[0], w[0], **options)
  np.testing.assert_array_equal(conv(x[0], w[0]), want)
  assert jax.eval_shape(jax.vmap(conv), x, w).shape == (N, *want.shape)
  with pytest.raises(ValueError):
    conv(x[0], w[0, :, :, :2])


def mesh():
  if jax.device_count() < 2:
    pytest.skip("one device")
  return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("name", ["grad(sum(vmap))", "one kernel for all", "jvp(grad)"])
def test_a_batch_sharded_over_devices(name):
  x, w, dx, dw = tensors()
  halves = NamedSharding(mesh(), P(None, "data"))
  x, dx = jax.device_put((x, dx), halves)
  w, dw = jax.device_put((w, dw), NamedSharding(halves.mesh, P()))
  same(COMPOSITIONS[name], x, w, dx, dw)


def test_gradients_under_shard_map_are_summed_over_devices():
  x, w, *_ = tensors()

  def total(f, x, w):
    return lax.psum(jax.vmap(f)(x, w).sum(), "data")

  def sharded(f, x, w):
    run = jax.shard_map(
      lambda x, w: jax.grad(partial(total, f), (0, 1))(x, w),
      mesh=mesh(),
      in_specs=(P(None, "data"), P()),
      out_specs=(P(None, "data"), P()),
    )
    return run(x, w)

  same(sharded, x, w)
  same_as_whole = COMPOSITIONS["grad(sum(vmap))"]
  f = partial(pair, conv_general_dilated)
  for a, b in zip(sharded(f, x, w), same_as_whole(f, x, w, None, None), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def grouped(text):
  return set(re.findall(r"(?:feature|batch)_group_count = (\d+)", text)) - {"1"}


def test_no_groups_appear_and_barriers_stay(monkeypatch):
  monkeypatch.setattr(onednn, "takes", lambda *_: False)
  x, w, *_ = tensors()
  f = jax.jit(jax.grad(lambda w: jax.vmap(partial(pair, conv_general_dilated))(x, w).sum()))
  lowered = f.lower(w)
  assert not grouped(lowered.as_text())
  if jax.default_backend() == "cpu":
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    assert "opt-barrier" in lowered.compile(compiler_options=options).as_text()


def test_linen_takes_it_for_every_padding():
  x = tensors()[0][0]
  for padding in ("SAME", "VALID", "CIRCULAR", "REFLECT", 1, ((0, 1), (2, 0))):
    conv = nn.Conv(3, (3, 3), strides=2, padding=padding, kernel_dilation=1)
    own = conv.clone(conv_general_dilated=conv_general_dilated)
    variables = conv.init(jax.random.key(1), x)
    np.testing.assert_array_equal(conv.apply(variables, x), own.apply(variables, x))
