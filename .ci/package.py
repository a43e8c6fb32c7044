"""Builds the distributions and uses the wheel as somebody would who has no checkout.

    make package

1. The sdist from the checkout and the wheel from the sdist, into dist/.
2. The wheel has `okdph_jax`, its configs and its licence, and nothing else at the top level.
3. In a fresh environment and an empty folder, `okdph train --config=digits` trains, with
   oneDNN's convolutions where the wheel has them and XLA's where it does not.
4. Where the wheel has compiled code: 2 and 3 again with a wheel built without a compiler.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
SDIST_HAS = ("LICENSE", "CHANGELOG.md", "CITATION.cff", "configs/digits.py", "tests/nets.py")
WHEEL_HAS = (
  "okdph_jax/main.py",
  "okdph_jax/py.typed",
  "okdph_jax/configs/digits.py",
  "okdph_jax/export/page.html",
  "okdph_jax/configs/sweeps/digits.py",
)
MEMORY, ONEDNN = "okdph_jax/runtime/_memory.abi3.so", "okdph_jax/nn/_onednn.abi3.so"
# The folder that a command runs in is not to provide its code, and Python may write the
# bytecode that `--no-compile` leaves out.
ENVIRONMENT = {
  name: value
  for name, value in os.environ.items()
  if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
}


def call(*command, **options):
  """Runs a command; where it fails, its output is shown and this script ends."""
  command = [str(part) for part in command]
  options = {"env": ENVIRONMENT} | options
  done = subprocess.run(
    command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
  )
  if done.returncode:
    sys.exit(f"{done.stdout}\nexit code {done.returncode}: {' '.join(command)}")
  return done.stdout


def environment(folder, *requirements):
  """A fresh virtual environment with these requirements; its Python."""
  call(sys.executable, "-m", "venv", "--without-pip", folder)
  install(folder / "bin" / "python", *requirements)
  return folder / "bin" / "python"


def install(python, *requirements):
  pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-compile")
  call(*pip, *requirements)


def check(archive, names, needed, top_level):
  missing = [name for name in needed if name not in names]
  foreign = sorted({name.split("/")[0] for name in names} - top_level)
  if missing or foreign:
    sys.exit(f"{archive.name}: lacks {missing}, has at the top level {foreign}")
  print(f"{archive.name}: {len(names)} files, {archive.stat().st_size >> 10} KiB")


def check_sdist(path):
  with tarfile.open(path) as archive:
    names = [member.name.partition("/")[2] for member in archive if member.isfile()]
  check(path, names, SDIST_HAS, {name.split("/")[0] for name in names})


def check_wheel(path):
  """The names of its files; the name of the wheel says whether some are compiled."""
  compiled = not path.name.endswith("none-any.whl")
  names = zipfile.ZipFile(path).namelist()
  info = "-".join(path.name.split("-")[:2]) + ".dist-info"
  needed = (*WHEEL_HAS, f"{info}/licenses/LICENSE", *[MEMORY] * compiled)
  check(path, names, needed, {"okdph_jax", info})
  return names


def train(python, config, folder, convolutions):
  """Two epochs on the digits, by the installed package, in an empty folder."""
  folder.mkdir()
  package = Path(call(python, "-c", "import okdph_jax; print(okdph_jax.__file__)", cwd=folder))
  if not package.is_relative_to(python.parent.parent):
    sys.exit(f"okdph_jax comes from {package}, not from the installed wheel")
  options = (f"--config={config}", "--config.epochs=2", "--workdir=run")
  output = call(python.parent / "okdph", "train", *options, cwd=folder)
  if not re.search(f"^convolutions +{convolutions}", output, re.M):
    sys.exit(f"{output}\nthe convolutions are not those of {convolutions}")
  accuracy = json.loads((folder / "run" / "result.json").read_text())["best_single"]["accuracy"]
  if accuracy < 0.5:  # 0.1 is chance
    sys.exit(f"{config}: an accuracy of {accuracy} after two epochs")


def main():
  start = time.monotonic()
  for old in DIST.glob("okdph_jax-*"):
    old.unlink()
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary).resolve()
    # One environment for all builds; `make install` builds in isolation.
    builder = environment(folder / "builder", "build", *project["build-system"]["requires"])
    build = (builder, "-m", "build", "--no-isolation", "--outdir")
    call(*build, DIST, ROOT)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    check_sdist(sdist)
    names = check_wheel(wheel)
    python = environment(folder / "user", wheel)
    train(python, "digits", folder / "first", "oneDNN" if ONEDNN in names else "XLA")
    print(f"{wheel.name}: installed and trained in a fresh environment")
    if MEMORY in names:
      with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
      unpacked = folder / sdist.name.removesuffix(".tar.gz")
      call(*build, DIST, "--wheel", unpacked, env=ENVIRONMENT | {"CXX": "no-compiler"})
      (pure,) = DIST.glob("*none-any.whl")
      check_wheel(pure)
      install(python, "--force-reinstall", "--no-deps", pure)
      train(python, "digits:base,resnet8", folder / "second", "XLA")
      print(f"{pure.name}: the same, built without a compiler")
  print(f"make package: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
  main()
