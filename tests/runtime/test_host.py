"""The machine, in processes of their own: a backend that runs keeps its settings."""

import importlib.util
import os
import platform
import subprocess
import sys

import jax
import pytest

from okdph_jax.runtime import host

KEEPER = importlib.util.find_spec("okdph_jax.runtime._memory")
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


def test_a_single_device_is_not_dispatched_to_ahead():
  code = "host.configure({}); print(jax.config.read('jax_cpu_enable_async_dispatch'))"
  assert python(code.format(1)) == ["False"]
  assert python(code.format(2)) == ["True"]


def test_the_default_divides_the_batch():
  four = "host.cores = lambda: 64\n"
  assert python(four + "host.configure(batch=128); print(jax.device_count())") == ["4"]
  assert python(four + "host.configure(batch=99); print(jax.device_count())") == ["3"]
  assert python(four + "host.configure(batch=7); print(jax.device_count())") == ["1"]


def test_a_network_of_many_parameters_has_one_device_by_default():
  code = "host.cores = lambda: 64\nhost.configure({}, 128, {}); print(jax.device_count())"
  assert python(code.format(None, host.ONE_DEVICE_FROM)) == ["1"]
  assert python(code.format(None, host.ONE_DEVICE_FROM - 1)) == ["4"]
  assert python(code.format(2, host.ONE_DEVICE_FROM)) == ["2"]


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
def test_large_blocks_start_the_program_once_more_in_the_same_process():
  code = "import os; print(os.getpid(), flush=True); memory.keep_large_blocks(); "
  code += "print(os.environ['GLIBC_TUNABLES'], os.environ.get('LD_PRELOAD', ''))"
  settings = {"GLIBC_TUNABLES": "glibc.malloc.check=0", "LD_PRELOAD": ""}
  first, second, tunables, *preloaded = python(code, **settings)
  assert first == second and tunables == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
  assert preloaded == ([KEEPER.origin] if KEEPER else [])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
@pytest.mark.parametrize("folder", ["my project", "a:b"])
def test_a_library_whose_path_the_loader_would_split_is_not_preloaded(folder):
  code = "import importlib.util as util, os, types; found = types.SimpleNamespace(origin="
  code += f"'/home/{folder}/_memory.so'); util.find_spec = lambda name: found; "
  code += "memory.keep_large_blocks(); print('preloaded', os.environ.get('LD_PRELOAD', ''))"
  assert python(code, GLIBC_TUNABLES="", LD_PRELOAD="") == ["preloaded"]


ALLOCATIONS = """
import ctypes
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype = libc.realloc.restype = ctypes.c_void_p
libc.aligned_alloc.argtypes = libc.realloc.argtypes = [ctypes.c_size_t] * 2
libc.free.argtypes = [ctypes.c_size_t]
libc.okdph_memory_mapped.restype = ctypes.c_size_t
mega = 2 ** 20
mapped = lambda: libc.okdph_memory_mapped() // mega

block = libc.aligned_alloc(64, 100 * mega)
ctypes.memset(block, 7, 100 * mega)
libc.free(block)
again = libc.aligned_alloc(64, 95 * mega)
print(block == again, mapped())  # the same block, which is not mapped twice
again = libc.realloc(again, 150 * mega)  # to glibc's own, with its contents
print(ctypes.string_at(again + 95 * mega - 2, 2) == bytes([7, 7]), mapped())
libc.free(again)
for size in range(10, 200, 10):  # what is freed is unmapped before more than ever is in use
  libc.free(libc.aligned_alloc(64, size * mega))
print(mapped() <= 190 * 9 / 8)
"""


@pytest.mark.skipif(KEEPER is None, reason="not built")
def test_a_freed_block_is_used_again_and_what_waits_is_bounded():
  out = python(ALLOCATIONS, LD_PRELOAD=str(KEEPER and KEEPER.origin))
  assert out == ["True", "100", "True", "100", "True"]


FREED = """
def resident():
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) // 256  # MB of pages of 4 kB
kept = [bytearray(4000) for _ in range(25000)]
end, before = bytearray(4000), resident()  # the end of the heap is in use
del kept
held = resident()
memory.return_freed()
print(before - held < 20, held - resident() > 60)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_what_small_blocks_were_freed_goes_back_to_the_system():
  assert python(FREED) == ["True", "True"]


def test_compiler_options_are_the_platforms():
  options = host.compiler_options()
  assert bool(options) == (jax.default_backend() == "cpu")
  assert host.compiler_options("cpu") and not host.compiler_options("tpu")
  assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
