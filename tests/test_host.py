"""The machine, in processes of their own: a backend that runs keeps its settings."""

import os
import subprocess
import sys

import jax
import pytest

from okdph_jax import host

ON_CPU = os.environ | {"JAX_PLATFORMS": "cpu"}


def python(code, **settings):
  command = [sys.executable, "-c", "import jax; from okdph_jax import host\n" + code]
  done = subprocess.run(command, env=ON_CPU | settings, capture_output=True, text=True)
  assert not done.returncode, done.stderr
  return done.stdout.split()


def test_a_device_per_core_or_as_asked():
  assert python("host.configure(3); print(jax.device_count(), host.mesh(2).size)") == ["3", "2"]
  count = min(len(os.sched_getaffinity(0)), 4)
  assert python("host.configure(); print(jax.device_count())") == [str(count)]


def test_the_default_divides_the_batch():
  four = "host.cores = lambda: 64\n"
  assert python(four + "host.configure(batch=128); print(jax.device_count())") == ["4"]
  assert python(four + "host.configure(batch=99); print(jax.device_count())") == ["3"]
  assert python(four + "host.configure(batch=7); print(jax.device_count())") == ["1"]


@pytest.mark.parametrize(
  "ask, words",
  [
    (lambda: host.configure(0), "at least 1"),
    (lambda: host.configure(3, batch=128), "devices=3 does not divide batch_size=128"),
    (lambda: host.mesh(99), "devices=99, but there are"),
  ],
)
def test_impossible_requests_are_refused_in_one_line(ask, words):
  with pytest.raises(ValueError, match=words) as error:
    ask()
  assert "\n" not in str(error.value)


def test_freed_memory_is_kept():
  touch = """
import ctypes, resource
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(5):
    ctypes.memset(block := libc.malloc(64 << 20), 1, 64 << 20)
    libc.free(block)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
try:
  libc = ctypes.CDLL("libc.so.6")
  libc.gnu_get_libc_version
except (OSError, AttributeError):
  print("no glibc")
else:
  libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
  first = faults(); host.keep_freed_memory(); faults(); print(first, faults())
"""
  out = python(touch)
  if out == ["no", "glibc"]:
    pytest.skip("no glibc")
  mapped, kept = map(int, out)
  assert kept < mapped / 10


def test_compiler_options_are_the_platforms():
  options = host.compiler_options()
  assert bool(options) == (jax.default_backend() == "cpu")
  assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
