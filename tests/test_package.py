"""What `pyproject.toml` says of the package is so. `make package` builds and installs it."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.test_imports import MODULES, PACKAGE, imports

ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_IMPORTED = {
  "importlib-resources",  # tfds needs it and does not declare it
  "filelock",  # for JAX
  "onednn-cpu-gomp",  # a shared library
  "tensorboard",  # clu's metric writers need it and do not declare it
}


def normal(name):
  return re.sub(r"[-_.]+", "-", name).lower()


def declared():
  extras = PROJECT["project"]["optional-dependencies"]
  every = [*PROJECT["project"]["dependencies"], *extras["export"], *extras["slurm"]]
  return {normal(re.match(r"[\w.-]+", d)[0]) for d in every}


def imported():
  """For every third-party module that okdph_jax imports, the distributions that have it."""
  own = {"okdph_jax", *sys.stdlib_module_names}
  tops = {name.partition(".")[0] for path in MODULES for _, name in imports(path)} - own
  provided = importlib.metadata.packages_distributions()
  return [{normal(name) for name in provided[top]} for top in sorted(tops)]


def test_every_package_is_in_the_wheel():
  folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")}
  names = {".".join(folder.parts) for folder in folders}
  names |= {"okdph_jax.configs", "okdph_jax.configs.sweeps"}
  listed = PROJECT["tool"]["setuptools"]["packages"]
  assert sorted(names) == listed, "tool.setuptools.packages of pyproject.toml, sorted"


def test_dependencies_are_those_imported():
  for distributions in imported():
    assert distributions & declared(), f"imported, not in pyproject.toml: {distributions}"
  assert declared() - set().union(*imported()) <= NOT_IMPORTED, "declared, and not imported"


def test_dependencies_have_a_lower_bound():
  for dependency in PROJECT["project"]["dependencies"]:
    assert re.search(">=|==", dependency), dependency


def test_citation_and_package_have_one_version():
  version = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
  assert version == PROJECT["project"]["version"]


def test_make_help_lists_every_target():
  makefile = (ROOT / "Makefile").read_text()
  targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()
  helped = subprocess.check_output(
    ["make", "--no-print-directory", "help"], cwd=ROOT, text=True
  )
  assert {line.split()[0] for line in helped.splitlines()} == set(targets)


def test_ci_calls_targets_that_exist():
  makefile = (ROOT / "Makefile").read_text()
  for path in (ROOT / ".ci" / "run", *Path(ROOT / ".github" / "workflows").glob("*.yml")):
    for target in re.findall(r"\bmake ([a-z-]+)", path.read_text()):
      assert re.search(rf"^{target}:", makefile, re.M), f"{path}: make {target}"
