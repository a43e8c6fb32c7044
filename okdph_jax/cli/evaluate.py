"""`okdph evaluate`: accuracy and calibration of a run's networks, on its data or on others."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from okdph_jax.cli.arguments import Parser, command, split_options

if TYPE_CHECKING:  # JAX comes with it
  from okdph_jax.experiment.evaluation import Evaluation

DESCRIPTION = """\
Measures a run's networks: accuracy, cross-entropy, expected calibration error (15 bins; Guo et
al., arXiv:1706.04599), accuracy per class, and confusion matrix. --data.OPTION=VALUE evaluates
on other data than the run's; the options are those of config.data.

  okdph evaluate --workdir=runs/digits
  okdph evaluate --workdir=runs/cifar10 --reader=hybrid --data.name=arrays --data.dir=new.npz

Writes READER.json, READER.csv and READER.png (the confusion matrix) for each network.
"""


@command
def main(arguments: list[str]) -> int:
  _, changes, rest = split_options(arguments, "data")
  parser = Parser("evaluate", DESCRIPTION)
  parser.add_argument("--workdir", metavar="DIR", help="run directory")
  parser.add_argument(
    "--reader", help="one network or ensemble, such as student_0 or hybrid (all)"
  )
  parser.add_argument("--which", help="checkpoint: last, best-validation or best-test")
  parser.add_argument("--split", default="test", help="test, validation or train (%(default)s)")
  parser.add_argument("--network", help="class of the run's own network, package.module:Name")
  parser.add_argument("--out", metavar="DIR", help="output directory (WORKDIR/evaluation)")
  flags = parser.parse(rest)
  if not flags.workdir:
    raise ValueError("--workdir=DIR is needed: okdph evaluate --workdir=runs/digits")

  from tabulate import tabulate

  from okdph_jax.experiment.config import changed_data
  from okdph_jax.experiment.evaluation import evaluate_all
  from okdph_jax.report import confusion

  found = evaluate_all(
    flags.workdir,
    which=flags.which,
    data=changed_data(changes),
    split=flags.split,
    network=flags.network,
  )
  if flags.reader and flags.reader not in found:
    raise ValueError(f"there is no reader {flags.reader!r} (there are {', '.join(found)})")
  found = {flags.reader: found[flags.reader]} if flags.reader else found
  out = Path(flags.out or Path(flags.workdir) / "evaluation")
  out.mkdir(parents=True, exist_ok=True)
  first = next(iter(found.values()))
  print(f"{first.dataset}; checkpoint: {first.checkpoint}")
  rows = [(e.reader, e.accuracy, e.cross_entropy, e.calibration_error) for e in found.values()]
  headers = ("reader", "accuracy", "cross-entropy", "calibration error")
  print(tabulate(rows, headers, floatfmt=".4f"))
  for name, evaluation in found.items():
    write(evaluation, out / name)
    confusion.draw(evaluation, out / f"{name}.png")
  if flags.reader and len(first.class_names) <= 20:
    rows = [
      (name, f"{rate:.4f}", *counts)
      for name, rate, counts in zip(
        first.class_names, first.per_class, first.confusion.tolist(), strict=True
      )
    ]
    headers = ("true class", "accuracy", *first.class_names)
    print("\nimages of each class (rows) by predicted class (columns)")
    print(tabulate(rows, headers, disable_numparse=True))
  print(f"wrote {out}")
  return 0


def write(evaluation: "Evaluation", path: Path) -> None:
  """PATH.json with everything, PATH.csv with the confusion matrix."""
  entries = evaluation._asdict() | {
    "per_class": [None if x != x else x for x in evaluation.per_class.tolist()],
    "confusion": evaluation.confusion.tolist(),
  }
  path.with_suffix(".json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
  lines = [["true \\ predicted", *evaluation.class_names]]
  lines += [
    [name, *map(str, counts)]
    for name, counts in zip(evaluation.class_names, entries["confusion"], strict=True)
  ]
  with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(lines)
