"""Signals as a program hears them: at once, also while C++ keeps the main thread."""

import signal
import subprocess
import sys
import time

import pytest

from okdph_jax.runtime.signals import SAME_REQUEST_SECONDS

PROGRAM = """
import hashlib, os, sys
from okdph_jax.runtime import signals
signals.hold()
os.kill(os.getpid(), int(sys.argv[1])) if len(sys.argv) > 1 else None
signals.listen()
print("listening", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # no handler of Python runs in here
"""


def program(*arguments):
  return subprocess.Popen(
    [sys.executable, "-c", PROGRAM, *map(str, arguments)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_first_is_said_at_once_and_a_second_ends(second):
  with program() as running:
    assert running.stdout.readline() == "listening\n"
    running.send_signal(signal.SIGINT)
    assert "SIGINT: stopping at the next step" in running.stderr.readline()
    running.send_signal(signal.SIGINT)  # part of the same request
    time.sleep(SAME_REQUEST_SECONDS + 0.1)
    assert running.poll() is None
    running.send_signal(second)
    _, said = running.communicate(timeout=60)
  assert running.returncode == 128 + second
  assert said.count("\n") == 1 and f"{second.name} again: stopped at once" in said


def test_one_that_came_before_is_heard():
  with program(int(signal.SIGTERM)) as running:
    assert "SIGTERM: stopping" in running.stderr.readline()
    time.sleep(SAME_REQUEST_SECONDS + 0.1)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
  assert running.returncode == 143


def test_it_needs_no_jax():
  code = "import sys; sys.modules['jax'] = None; from okdph_jax.runtime import signals, memory"
  assert not subprocess.run([sys.executable, "-c", code]).returncode
