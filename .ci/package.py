"""Builds the distributions and uses the wheel as somebody would who has no checkout.

    make package

1. `python -m build`: the sdist from the checkout, the wheel from the sdist, both in dist/.
2. The wheel has `okdph_jax`, its configs and its licence, and nothing else at the top level.
3. In a fresh environment and an empty folder, the installed wheel trains on the digits.
4. Where the wheel has compiled code: 2 and 3 again with a wheel built without a compiler.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
SDIST_HAS = ("LICENSE", "CHANGELOG.md", "CITATION.cff", "configs/digits.py", "tests/nets.py")
WHEEL_HAS = ("okdph_jax/main.py", "okdph_jax/py.typed", "okdph_jax/configs/digits.py")


def call(*command, **options):
  subprocess.run([str(part) for part in command], check=True, **options)


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
  names = zipfile.ZipFile(path).namelist()
  info = "-".join(path.name.split("-")[:2]) + ".dist-info"
  check(path, names, (*WHEEL_HAS, f"{info}/licenses/LICENSE"), {"okdph_jax", info})


def train(python, folder):
  """Two epochs on the digits, by the installed package, in an empty folder."""
  folder.mkdir()
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  find = "import okdph_jax, pathlib; print(pathlib.Path(okdph_jax.__file__).parent)"
  package = subprocess.check_output(
    [python, "-c", find], cwd=folder, env=environment, text=True
  ).strip()
  if not package.startswith(str(python.parent.parent)):
    sys.exit(f"okdph_jax comes from {package}, not from the installed wheel")
  call(
    *(python, "-m", "okdph_jax.main", f"--config={package}/configs/digits.py"),
    *("--config.epochs=2", "--workdir=run"),
    cwd=folder,
    env=environment,
  )
  return json.loads((folder / "run" / "result.json").read_text())


def main():
  for old in DIST.glob("okdph_jax-*"):
    old.unlink()
  call(sys.executable, "-m", "build", "--outdir", DIST, ROOT, stdout=subprocess.DEVNULL)
  (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
  check_sdist(sdist)
  check_wheel(wheel)
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary).resolve()
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", wheel)
    train(python, folder / "first")
    print(f"{wheel.name}: installed and trained in a fresh environment")
    if not wheel.name.endswith("none-any.whl"):
      call(
        *(python, "-m", "pip", "wheel", "--quiet", "--no-cache-dir", "--no-deps", sdist),
        *("--wheel-dir", DIST),
        env=os.environ | {"CXX": "no-compiler"},
      )
      (pure,) = DIST.glob("*none-any.whl")
      check_wheel(pure)
      call(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", pure)
      train(python, folder / "second")
      print(f"{pure.name}: the same, built without a compiler")


if __name__ == "__main__":
  main()
