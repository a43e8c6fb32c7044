"""oneDNN's convolutions: values, bits, sharding, the compilation cache, and doing without."""

import re
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from okdph_jax.nn import onednn
from okdph_jax.nn.convolution import Geometry, conv_general_dilated, plain
from okdph_jax.runtime import host

built = pytest.mark.skipif(
  onednn.choice().onednn is None, reason=f"convolutions: {onednn.choice()}"
)
TARGETS = "out", "lhs", "rhs"


def geometry_of(images, space, window, channels, stride=1, pads=(1, 1), dilation=1, groups=1):
  """(geometry, {tensor: shape}) of a convolution with the same numbers along all dimensions."""
  n = len(space)
  lhs, rhs = (images, *space, channels[0]), (*(window,) * n, channels[0] // groups, channels[1])
  layout = "N" + "DHW"[-n:] + "C", "DHW"[-n:] + "IO", "N" + "DHW"[-n:] + "C"
  dimensions = lax.conv_dimension_numbers(lhs, rhs, layout)
  each = ((stride,) * n, (pads,) * n, (1,) * n, (dilation,) * n)
  geometry = Geometry(*each, dimensions, groups, None)
  out = jax.eval_shape(geometry.convolve, jnp.zeros(lhs), jnp.zeros(rhs)).shape
  return geometry, {"lhs": lhs, "rhs": rhs, "out": out}


def random_tensors(shapes, networks=None):
  rng = np.random.default_rng(0)
  stack = () if networks is None else (networks,)
  return {role: rng.normal(size=(*stack, *shape)) for role, shape in shapes.items()}


GEOMETRIES = {
  "3x3": geometry_of(4, (8, 8), 3, (16, 16)),
  "3x3 of an image": geometry_of(4, (8, 8), 3, (3, 16)),
  "odd numbers": geometry_of(3, (9, 7), 3, (5, 7), pads=(1, 0)),
  "stride": geometry_of(4, (9, 8), 3, (16, 32), stride=2),
  "stride 3, window 4": geometry_of(2, (9, 9), 4, (9, 5), stride=3, pads=(2, 1)),
  "dilation": geometry_of(4, (9, 8), 3, (8, 8), dilation=2, pads=(2, 2)),
  "no padding": geometry_of(2, (8, 8), 5, (6, 16), pads=(0, 0)),
  "1x1": geometry_of(4, (8, 8), 1, (48, 20), pads=(0, 0)),
  "groups": geometry_of(2, (8, 8), 3, (12, 8), groups=4),
  "groups, strided": geometry_of(2, (8, 8), 3, (32, 32), groups=2, stride=2),
  "depthwise": geometry_of(2, (8, 8), 3, (24, 24), groups=24),
  "depthwise, two outputs each": geometry_of(2, (8, 8), 3, (6, 12), groups=6),
  "one dimension": geometry_of(4, (11,), 5, (3, 6), pads=(2, 2)),
  "three dimensions": geometry_of(2, (6, 5, 4), 3, (4, 8)),
  "three dimensions, groups": geometry_of(2, (4, 5, 4), 3, (4, 8), groups=2),
}


@built
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_values_are_those_of_double_precision(name, target):
  geometry, shapes = GEOMETRIES[name]
  assert onednn.takes(target, geometry, shapes["lhs"], shapes["rhs"], jnp.float32)
  tensors = random_tensors(shapes, networks=2)
  operands = [x for role, x in tensors.items() if role != target]
  shape = tensors[target].shape
  with jax.enable_x64(True):
    solve = partial(plain, target=target, shape=shape[1:], geometry=geometry)
    want = np.stack(
      [solve(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(*operands, strict=True)]
    )
  stacked = jax.jit(
    partial(onednn.convolve, target=target, shape=shape, geometry=geometry, stacked=True)
  )
  single = jax.jit(
    partial(onednn.convolve, target=target, shape=shape[1:], geometry=geometry, stacked=False)
  )
  operands = [jnp.asarray(x, jnp.float32) for x in operands]
  got = stacked(*operands)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
  for n in range(2):
    np.testing.assert_array_equal(single(*(x[n] for x in operands)), got[n])


@built
@pytest.mark.skipif(not host.has_bfloat16(), reason="no instructions for bfloat16")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["3x3", "stride", "1x1", "groups", "depthwise"])
def test_bfloat16_rounds_operands_and_nothing_else(name, target):
  """A product of two bfloat16 is exact in float32, so that only the sums' order is free."""
  geometry, shapes = GEOMETRIES[name]
  tensors = {role: jnp.asarray(x, jnp.float32) for role, x in random_tensors(shapes).items()}
  operands = [x for role, x in tensors.items() if role != target]
  rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in operands]
  exact = {"target": target, "shape": shapes[target], "geometry": geometry}
  options = exact | {"geometry": geometry._replace(precision="bfloat16")}
  for given, convolution in ((rounded, options), (operands, exact)):
    want = plain(*given, **exact)
    got = jax.jit(partial(onednn.convolve, **convolution, stacked=False))(*operands)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_the_rest_stays_with_xla(monkeypatch):
  monkeypatch.setattr(onednn, "choice", lambda: onednn.Choice("3.2"))

  def takes(target, geometry, shapes, dtype=jnp.float32):
    return onednn.takes(target, geometry, shapes["lhs"], shapes["rhs"], dtype)

  geometry, shapes = GEOMETRIES["3x3"]
  assert takes("out", geometry, shapes)
  assert not takes("out", geometry, shapes, jnp.bfloat16)
  assert not takes("out", geometry, shapes, jnp.float64)
  assert not takes("out", geometry._replace(lhs_dilation=(1, 2)), shapes)
  assert not takes("out", geometry._replace(padding=((1, -1), (1, 1))), shapes)
  assert not takes("out", geometry, shapes | {"lhs": (0, 8, 8, 16)})
  channels_first = lax.conv_dimension_numbers((4, 16, 8, 8), (16, 16, 3, 3), None)
  assert not takes("out", geometry._replace(dimension_numbers=channels_first), shapes)
  strided = geometry_of(4, (8, 8), 1, (16, 32), stride=2, pads=(0, 0))
  assert [takes(target, *strided) for target in TARGETS] == [True, False, True]
  stem = geometry_of(4, (8, 8), 3, (3, 32), stride=2)
  assert [takes(target, *stem) for target in TARGETS] == [True, False, True]
  small = geometry_of(4, (2, 2), 3, (16, 16))
  assert not any(takes(target, *small) for target in TARGETS)
  empty = geometry_of(4, (4, 4), 3, (16, 16), pads=(0, 0), dilation=2)
  assert empty[1]["out"] == (4, 0, 0, 16) and not takes("out", *empty)


@built
@pytest.mark.parametrize("openmp", [1, 2])
def test_bits_repeat_also_in_threads(openmp, monkeypatch):
  monkeypatch.setattr(onednn, "threads", lambda: openmp)
  geometry, shapes = GEOMETRIES["stride"]
  tensors = {role: jnp.asarray(x, jnp.float32) for role, x in random_tensors(shapes).items()}
  programs = {}
  for target in TARGETS:
    options = {"target": target, "shape": shapes[target], "geometry": geometry}
    operands = [x for role, x in tensors.items() if role != target]
    program = jax.jit(partial(onednn.convolve, **options, stacked=False))
    programs[target] = partial(program, *operands)
  first = {target: np.asarray(run()) for target, run in programs.items()}
  for target, got in first.items():
    operands = [x for role, x in tensors.items() if role != target]
    want = plain(*operands, target=target, shape=shapes[target], geometry=geometry)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
  again = []

  def repeat():
    for _ in range(5):
      again.append({target: np.asarray(run()) for target, run in programs.items()})

  threads = [threading.Thread(target=repeat) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(again) == 20
  for results in again:
    jax.tree.map(np.testing.assert_array_equal, results, first)


LAYOUTS = {  # (axes of the mesh, what the batch is split over)
  "all devices": ({"data": 2}, "data"),
  "one of two axes": ({"data": 2, "model": 1}, "data"),
  "both axes": ({"data": 2, "model": 1}, ("data", "model")),
  "nowhere": ({"data": 2}, None),
}


def gradients(x, w):
  conv = partial(
    conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return jax.grad(lambda x, w: jnp.sin(jax.vmap(conv)(x, w)).sum(), (0, 1))(x, w)


def sharded(axes, split, images=4):
  """Two networks' images, split over the mesh, and kernels, everywhere."""
  if jax.device_count() < 2:
    pytest.skip("one device")
  mesh = jax.make_mesh(
    tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)
  )
  x = jax.random.normal(jax.random.key(0), (2, images, 8, 8, 4))
  w = jax.random.normal(jax.random.key(1), (2, 3, 3, 4, 8))
  return jax.device_put((x, w), (NamedSharding(mesh, P(None, split)), NamedSharding(mesh, P())))


@built
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_split_batch_stays_where_it_is(name):
  axes, split = LAYOUTS[name]
  x, w = sharded(axes, split)
  compiled = jax.jit(gradients).lower(x, w).compile()
  text = compiled.as_text()
  assert "all-gather" not in text and "all-to-all" not in text
  assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == (1 if split else 0)
  one_device = jax.device_put((x, w), jax.devices()[0])
  got, want = compiled(x, w), jax.jit(gradients)(*one_device)
  assert got[0].sharding.is_equivalent_to(x.sharding, x.ndim)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@built
def test_a_batch_that_devices_do_not_divide_is_not_split():
  """What is computed from them may be: XLA then pads the batch of its own accord."""
  x, w = sharded({"data": 2}, None, images=3)
  split = NamedSharding(w.sharding.mesh, P(None, "data"))

  def run(x, w):
    return gradients(lax.with_sharding_constraint(x + 1, split), w)

  want = jax.jit(gradients)(*jax.device_put((x + 1, w), jax.devices()[0]))
  for a, b in zip(jax.jit(run)(x, w), want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


CACHED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from okdph_jax.nn.convolution import conv_general_dilated
from okdph_jax.runtime import host

host.configure(devices=2)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
x = jnp.arange(2 * 6 * 6 * 4, dtype=np.float32).reshape(2, 6, 6, 4)
w = jnp.arange(2 * 2 * 4 * 8, dtype=np.float32).reshape(2, 2, 4, 8)
x, w = jax.device_put((x, w), (NamedSharding(mesh, P("data")), NamedSharding(mesh, P())))
for pads in ((1, 0), (0, 1)):  # of equal shapes: only the padding tells them apart
  convolve = partial(
    conv_general_dilated, window_strides=(1, 1), padding=(pads,) * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  events.clear()
  out = np.asarray(jax.jit(convolve)(x, w))
  print("hit" if "/jax/compilation_cache/cache_hits" in events else "miss", out[0, 0, 0, 0])
"""


@built
def test_another_process_finds_the_program_in_the_cache(tmp_path):
  def run():
    command = [sys.executable, "-c", CACHED, str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

  first, second = run(), run()
  assert first[::2] == ["miss", "miss"] and second[::2] == ["hit", "hit"]
  assert first[1::2] == second[1::2] and first[1] != first[3]


@built
def test_a_call_with_wrong_shapes_is_an_error_of_the_program():
  x, w = jnp.zeros((2, 4, 4, 3)), jnp.zeros((3, 3, 3, 8))
  ones = np.ones(2, np.int64)
  call = jax.ffi.ffi_call(onednn.HANDLER, jax.ShapeDtypeStruct((2, 4, 4, 8), jnp.float32))
  rest = {"groups": np.int64(1), "threads": np.int64(1), "strides": ones, "dilation": ones}
  rest |= {"target": np.int64(2), "stacked": False, "bfloat16": False}
  good = call(x, w, **rest, low=ones, high=ones)
  assert good.shape == (2, 4, 4, 8)
  with pytest.raises(jax.errors.JaxRuntimeError, match="oneDNN"):
    jax.block_until_ready(call(x, w, **rest, low=ones, high=0 * ones))  # would be 2x3x3x8
  with pytest.raises(jax.errors.JaxRuntimeError, match="shapes"):
    jax.block_until_ready(call(x[0], w, **rest, low=ones, high=ones))


def test_jax_still_tells_the_devices_to_a_lowering():
  """`prim_requires_devices_during_lowering` is not public; without it oneDNN is out of use."""
  assert onednn._DEVICES_AT_LOWERING is not None


@pytest.fixture
def fresh(monkeypatch):
  """The choice is made anew in this test, and its own afterwards."""
  monkeypatch.delenv(onednn.VARIABLE, raising=False)
  onednn.choice.cache_clear()
  yield monkeypatch
  monkeypatch.undo()
  onednn.choice.cache_clear()


def test_a_variable_chooses(fresh):
  fresh.setenv(onednn.VARIABLE, "xla")
  assert str(onednn.choice()) == "XLA (OKDPH_CONVOLUTION=xla)"
  fresh.setenv(onednn.VARIABLE, "mkl")
  onednn.choice.cache_clear()
  with pytest.raises(ValueError, match="OKDPH_CONVOLUTION=mkl is not known; use onednn or xla"):
    onednn.choice()


def refuse(*_, **__):
  raise RuntimeError("INVALID_ARGUMENT: the handler's API version (0.9) is incompatible")


def absent(path):
  raise OSError("libgomp.so.1: cannot open shared object file")


@pytest.mark.parametrize(
  ("broken", "reason"),
  [
    (("importlib.util.find_spec", lambda name: None), "install a C++ compiler"),
    pytest.param(("ctypes.CDLL", absent), "libgomp.so.1: cannot open", marks=built),
    pytest.param(
      ("jax.ffi.register_ffi_target", refuse), "built for another jaxlib", marks=built
    ),
    pytest.param(
      ("okdph_jax.nn.onednn._DEVICES_AT_LOWERING", None), "does not support jax", marks=built
    ),
  ],
)
def test_without_it_one_line_says_what_is_missing(fresh, broken, reason):
  fresh.setattr(*broken)
  choice = onednn.choice()
  assert choice.name == "XLA" and reason in str(choice) and "\n" not in str(choice)
  fresh.setenv(onednn.VARIABLE, "onednn")
  onednn.choice.cache_clear()
  with pytest.raises(
    ValueError, match=f"OKDPH_CONVOLUTION=onednn is not possible: .*{re.escape(reason)}"
  ):
    onednn.choice()


def test_on_other_platforms_xla_needs_no_reason(fresh):
  fresh.setattr(jax, "default_backend", lambda: "gpu")
  assert str(onednn.choice()) == "XLA"
