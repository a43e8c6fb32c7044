"""The floors kept honest: imports only go down, and TensorFlow stays in its rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "okdph_jax"

FLOORS = [  # from the lowest up; the rooms of one floor do not import each other
  ["core", "errors", "durations", "intervals"],
  ["schedules", "losses", "hybridization", "files", "saved_config", "runtime"],
  ["optimizers", "nn", "data", "views", "models"],
  ["methods", "trained_network"],
  ["training"],
  ["run"],
  ["status"],
  ["experiment"],
  ["report", "analysis", "export", "sweep"],
  ["cli"],
  ["main", "__main__"],
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path, everywhere=True):
  """(line, dotted name) of the imports in a file, everywhere or on its top level alone."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree) if everywhere else tree.body:
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield node.lineno, f"{node.module}.{alias.name}"


def room_of(path):
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
  room = room_of(path)
  if room == "__init__":
    names = {name for _, name in imports(path, everywhere=False)}
    assert names == {"importlib", "typing.TYPE_CHECKING", "typing.Any"}, "the package is light"
    return
  assert room in FLOOR, f"{room} stands on no floor"
  height = FLOOR["main"] if path.name == "__main__.py" else FLOOR[room]
  for line, name in imports(path):
    top, _, rest = name.partition(".")
    other = rest.partition(".")[0]
    if top == "okdph_jax" and other != room:
      assert FLOOR[other] < height, f"{path}:{line}: {room} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_data_and_the_logbook_know_tensorflow(path):
  known = {name.partition(".")[0] for _, name in imports(path)}
  if known & {"tensorflow", "tensorflow_datasets", "clu", "tensorboard"}:
    assert room_of(path) == "data" or path.name in ("logbook.py", "to_tflite.py")


def test_everything_imports_where_tensorflow_is_not():
  """With jax, flax, optax and orbax alone; ml_collections is for running from a config."""
  names = [
    ".".join(["okdph_jax", *path.relative_to(PACKAGE).with_suffix("").parts])
    for path in MODULES
    if path.name not in ("__init__.py", "__main__.py", "main.py")
    and room_of(path) not in ("cli", "experiment", "sweep")
  ]
  absent = ["tensorflow", "tensorflow_datasets", "clu", "tensorboard", "ml_collections"]
  program = (
    f"import sys, importlib\nfor name in {absent}: sys.modules[name] = None\n"
    f"for name in {names}: importlib.import_module(name)"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
