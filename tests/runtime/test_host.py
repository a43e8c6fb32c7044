"""The machine, in processes of their own: a backend that runs keeps its settings."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from okdph_jax.runtime import host

ON_CPU = os.environ | {"JAX_PLATFORMS": "cpu"}


def python(code, **settings):
  command = [
    sys.executable,
    "-c",
    "import jax; from okdph_jax.runtime import host, memory\n" + code,
  ]
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_huge_pages_start_the_program_once_more_in_the_same_process():
  code = "import os; print(os.getpid(), flush=True); memory.use_huge_pages(); "
  code += "print(os.environ['GLIBC_TUNABLES'])"
  first, second, tunables = python(code, GLIBC_TUNABLES="glibc.malloc.check=0")
  assert first == second and tunables == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"


def test_compiler_options_are_the_platforms():
  options = host.compiler_options()
  assert bool(options) == (jax.default_backend() == "cpu")
  assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
