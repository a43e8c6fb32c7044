"""`okdph predict`: the classes of pictures, by an exported network or a run's."""

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from okdph_jax.cli.arguments import Parser, command

if TYPE_CHECKING:
  from okdph_jax.export.model import Model

DESCRIPTION = """\
Prints the most probable classes of pictures, and of all pictures in folders. MODEL is a folder
that `okdph export` wrote, or a run directory. A file that is not a picture is reported and left
out, and the exit code is 1.

  okdph predict runs/digits/export photo.png scans/
  okdph predict runs/digits/export scans/ --csv > classes.csv
  okdph predict runs/digits/export --serve       a page to drop pictures on
  okdph predict runs/digits/export --bench       the speed of every format
"""


@command
def main(arguments: list[str]) -> int:
  parser = Parser("predict", DESCRIPTION)
  parser.add_argument("model", metavar="MODEL", help="exported folder, or run directory")
  parser.add_argument(
    "pictures", metavar="IMAGE|DIR", nargs="*", help="pictures, or folders of them"
  )
  parser.add_argument("--format", help="of an export: onnx, stablehlo, tflite, ...")
  parser.add_argument("--reader", help="of a run: which network")
  parser.add_argument("--which", help="of a run: checkpoint last, best-validation or best-test")
  parser.add_argument(
    "--network", help="of a run: class of its own network, package.module:Name"
  )
  parser.add_argument(
    "--top", type=int, default=3, help="number of classes to print (%(default)s)"
  )
  parser.add_argument("--threads", type=int, help="for ONNX and TFLite (all cores)")
  mode = parser.add_mutually_exclusive_group()
  mode.add_argument("--json", action="store_true", help="print JSON")
  mode.add_argument("--csv", action="store_true", help="print CSV")
  mode.add_argument("--bench", action="store_true", help="measure the speed of every format")
  mode.add_argument("--serve", action="store_true", help="serve a page on this machine")
  parser.add_argument("--port", type=int, default=8000, help="of that page (%(default)s)")
  flags = parser.parse(arguments)
  if flags.top < 1 or (flags.threads or 1) < 1:
    raise ValueError("--top and --threads must be at least 1")
  if not 0 <= flags.port <= 65535:
    raise ValueError(f"--port is {flags.port}; it must lie in [0, 65535]")
  if not (flags.pictures or flags.bench or flags.serve):
    raise ValueError("name pictures or a folder of pictures, or add --serve or --bench")

  unused = {
    "bench": ("format", "reader", "which", "network", "pictures"),
    "serve": ("pictures",),
  }
  for mode, names in unused.items():
    given = [name for name in names if getattr(flags, name)]
    if getattr(flags, mode) and given:
      raise ValueError(f"--{mode} does not use {', '.join(given)}; leave that out")
  if flags.bench:
    measure(flags.model, flags.threads)
    return 0

  from okdph_jax.export.model import load

  files = pictures_in(flags.pictures)
  model = load(
    flags.model, flags.format, flags.reader, flags.which, flags.network, flags.threads
  )
  if flags.serve:
    serve(model, flags.port, flags.top)
    return 0
  names, images, bad = [], [], 0
  for path in files:
    try:
      images.append(model.picture(str(path), path))
      names.append(str(path))
    except ValueError as error:
      print(f"left out: {error}", file=sys.stderr)
      bad += 1
  predictions = list(zip(names, model.predictions(images, flags.top), strict=True))
  if flags.json:
    show_json(predictions)
  elif flags.csv:
    show_csv(predictions)
  else:
    show(model, predictions)
  return 1 if bad else 0


def pictures_in(names: list[str]) -> list[Path]:
  """The files that these files and folders name, those of a folder in the order of their paths.

  Raises:
    ValueError: in one line, for a name that is not there, or a folder without pictures.
  """
  from okdph_jax.data import pictures

  files = []
  for name in names:
    path = Path(name)
    if path.is_dir():
      found = sorted(
        f for f in path.rglob("*") if f.suffix.lower() in pictures.suffixes() and f.is_file()
      )
      if not found:
        raise ValueError(f"there are no pictures in {path}")
      files += found
    elif path.is_file():
      files.append(path)
    else:
      raise ValueError(f"there is no file or folder {path}")
  return files


Predictions = list[tuple[str, list[tuple[str, float]]]]


def show(model: "Model", predictions: Predictions) -> None:
  from tabulate import tabulate

  print(model.name)
  rows = [(name, *(f"{c} {p:.1%}" for c, p in classes)) for name, classes in predictions]
  print(tabulate(rows, tablefmt="plain"))


def show_json(predictions: Predictions) -> None:
  from okdph_jax.export.serve import as_json

  found: Any = [{"file": name, "classes": as_json(c)} for name, c in predictions]
  print(json.dumps(found, indent=2, ensure_ascii=False))


def show_csv(predictions: Predictions) -> None:
  """A line per picture: its file, then class and probability, the most probable first."""
  writer = csv.writer(sys.stdout, lineterminator="\n")
  count = max((len(classes) for _, classes in predictions), default=1)
  writer.writerow(
    ["file", *(f"{x}_{i + 1}" for i in range(count) for x in ("class", "probability"))]
  )
  for name, classes in predictions:
    writer.writerow([name, *(x for c, p in classes for x in (c, f"{p:.6f}"))])


def measure(path: str, threads: int | None) -> None:
  from tabulate import tabulate

  from okdph_jax.export.bench import SIZES, bench
  from okdph_jax.runtime import host

  rows = [
    (
      speed.format,
      f"{speed.latency_ms:.2f}",
      *(f"{r:,.0f}" for r in speed.images_per_second.values()),
    )
    for speed in bench(path, threads)
  ]
  print(f"medians with {threads or host.cores()} threads; TFLite computes one image at a time")
  headers = ("format", "ms for 1 image", *(f"images/s, batch {size}" for size in SIZES))
  print(tabulate(rows, headers, disable_numparse=True, stralign="right"))


def serve(model: "Model", port: int, top: int) -> None:
  from okdph_jax.export.serve import server

  with server(model, port, top) as running:
    print(
      f"{model.name}: http://127.0.0.1:{running.server_address[1]} (Ctrl-C stops it)",
      flush=True,
    )
    try:
      running.serve_forever()
    except KeyboardInterrupt:
      print()
