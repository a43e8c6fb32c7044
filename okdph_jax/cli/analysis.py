"""`okdph analysis`: how flat the loss is around trained networks."""

import argparse
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from okdph_jax.cli.arguments import Parser, command
from okdph_jax.errors import nearest

ANALYSES = {  # module of okdph_jax.analysis -> what it measures
  "landscape": "loss on a plane through snapshots, around networks, or between students",
  "hessian": "top eigenvalues, trace and spectral density of the Hessian",
  "sharpness": "worst and mean rise of the loss around a network",
  "pac_bayes": "PAC-Bayes quantities over training",
  "barrier": "distance and barrier between students over training",
  "noise": "accuracy against noise on the input",
  "dot": "the two losses of distillation and how their gradients agree",
  "ablation": "networks side by side, such as generations of self-distillation",
}
DESCRIPTION = """\
Measures how flat the loss is around trained networks.

  okdph analysis landscape --workdir=runs/okdph --workdir=runs/dml
  okdph analysis hessian --workdir=runs/okdph --readers=student_0,center

{analyses}

It takes runs of any method, finished or not. A directory of runs, such as a sweep's, and a
pattern, --workdir='runs/okdph-seed*', stand for the finished runs in it. Runs of one entry of
a sweep are replicates: a second table has their means and, with --baseline=ENTRY, differences.

It prints tables and writes NAME.json, NAME.png and NAME.svg to the directory analysis of the
first run. okdph analysis NAME --help has the options; docs/flatness.md explains the numbers.
"""
SNAPSHOTS = ("landscape", "pac_bayes", "barrier", "dot")  # these read the course of training


@command
def main(arguments: list[str]) -> int:
  name, *rest = arguments or ["--help"]
  if name in ("-h", "--help"):
    width = max(map(len, ANALYSES))
    lines = (f"  {name:{width}}  {about}" for name, about in ANALYSES.items())
    print(DESCRIPTION.format(analyses="\n".join(lines)), end="")
    return 0
  if name not in ANALYSES:
    raise ValueError(
      f"there is no analysis {name!r}{nearest(name, ANALYSES)} "
      f"(there are {', '.join(ANALYSES)})"
    )
  options = vars(parser(name).parse(rest))
  if not options["workdir"]:
    raise ValueError(f"--workdir=DIR is needed: okdph analysis {name} --workdir=runs/digits")
  print(run(name, **options))
  return 0


def parser(name: str) -> Parser:
  parser = Parser(f"analysis {name}", ANALYSES[name][0].upper() + ANALYSES[name][1:] + ".")

  def add(
    option: str,
    kind: Callable[[str], Any] = str,
    default: Any = None,
    about: str = "",
    **more: Any,
  ):
    about += "" if default is None else " (%(default)s)"
    parser.add_argument(option, type=kind, default=default, help=about, **more)

  add(
    "--workdir",
    about="run directory, or one of several runs; can be repeated",
    action="append",
    metavar="DIR",
  )
  if name != "landscape":
    add(
      "--baseline",
      about="entry of a sweep: show paired differences to its runs",
      metavar="ENTRY",
    )
  if name not in ("barrier", "dot"):
    add("--readers", about="names of networks, separated by commas (all single networks)")
  add("--network", about="class of the runs' own network, package.module:Name")
  add("--images", count, 1000, "number of images, or all if there are fewer")
  add("--batch", count, 250, "images at a time")
  add("--seed", at_least(0), 0, "for drawing images, probes and directions")
  add("--out", about="output directory (WORKDIR/analysis)", metavar="DIR")
  if name not in ("pac_bayes", "dot", "ablation"):
    split = "test" if name == "noise" else "train"
    add("--split", str, split, "split to take images from", choices=("train", "test"))
  if name not in ("pac_bayes", "barrier", "dot"):
    add("--which", about="checkpoint: last, best-validation or best-test")
  _OPTIONS.get(name, lambda add: None)(add)
  return parser


def at_least(least: int) -> Callable[[str], int]:
  """A whole number of at least `least`."""

  def count(text: str) -> int:
    value = int(text)
    if value < least:
      raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value

  return count


count = at_least(1)


def _landscape(add):
  add("--plane", str, "pca", "what plane", choices=("pca", "nearest", "random", "line"))
  add("--size", at_least(2), 41, "points along each axis; one more if even on a random plane")
  add("--value", str, "loss", "what is drawn", choices=("loss", "error"))
  modes = ("reestimated", "mixed")
  add("--statistics", str, "reestimated", "batch statistics of a point", choices=modes)
  add("--statistics-images", count, 500, "that they are re-estimated on")
  add("--reach", float, 1.0, "of a random plane, in filter norms")


def _hessian(add):
  add("--k", count, 5, "how many eigenvalues")
  add("--probes", count, 50, "of the trace")


def _sharpness(add):
  add("--rho", float, (0.01, 0.05), "radii, in weight norms", nargs="+")
  add("--sigma", float, 0.1, "of the noise, in weights")
  add("--draws", count, 20, "of the noise")


def _pac_bayes(add):
  add("--points", count, 6, "snapshots, evenly spaced")
  add("--steps", at_least(0), 0, "of RMSprop on the bound")


def _barrier(add):
  add("--points", at_least(3), 11, "on each line, its ends included")
  add("--snapshots", count, 20, "at most so many, evenly spaced")


_OPTIONS = {
  "landscape": _landscape,
  "hessian": _hessian,
  "sharpness": _sharpness,
  "pac_bayes": _pac_bayes,
  "barrier": _barrier,
}


def run(
  name: str,
  workdir: list[str],
  readers: str | None = None,
  out: str | None = None,
  network: str | None = None,
  which: str | None = None,
  baseline: str | None = None,
  **settings: Any,
) -> str:
  """Runs one analysis and writes its files; returns what to print."""
  from okdph_jax.analysis import finding, replicates, subject
  from okdph_jax.experiment.summary import environment
  from okdph_jax.runtime import host

  host.configure()
  analyse = importlib.import_module(f"okdph_jax.analysis.{name}").analyse
  chosen = tuple(readers.split(",")) if readers else ()
  runs = subject.subjects(workdir, network)
  entries = dict.fromkeys(replicates.entry_and_seed(run.name)[0] for run in runs)
  if baseline is not None and baseline not in entries:
    raise ValueError(
      f"--baseline={baseline}: there is no such entry among {', '.join(entries)}"
    )
  directory = Path(out) if out else runs[0].run.path / "analysis"
  partial = directory / f"{name}.partial"
  more: dict[str, Any] = {"partial_dir": partial} if name in ("landscape", "barrier") else {}
  if name in ("landscape", "pac_bayes"):
    more["readers"] = chosen
  if name == "landscape":
    more["which"] = which
  analysed = runs if name in SNAPSHOTS else subject.targets(runs, chosen, which)
  found = analyse(analysed, **settings, **more)
  text, about = found.table(), dict[str, Any]()
  if baseline or replicates.repeated(found.scalars):
    about["replicates"] = replicates.summary(found.scalars, baseline)
    text += f"\n\n{replicates.table(about['replicates'], baseline)}"
  finding.write(
    found,
    directory,
    name,
    **about,
    settings={"readers": chosen, "which": which, "baseline": baseline} | settings,
    environment=environment(),
    runs=[{"workdir": str(r.run.path), "name": r.name, "config": r.config} for r in runs],
  )
  shutil.rmtree(partial, ignore_errors=True)
  return f"{text}\n{directory / name}.json, .png, .svg"
