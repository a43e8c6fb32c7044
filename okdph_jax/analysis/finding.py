"""What an analysis found: a table, numbers and a figure, and how they are written."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from okdph_jax.analysis import figures
from okdph_jax.analysis.replicates import Rows


class Finding(NamedTuple):
  """What `analyse` of every module returns."""

  headers: tuple[str, ...]
  rows: list[tuple[Any, ...]]  # of the table
  numbers: dict[str, Any]  # for JSON: what is in the table and what the figure draws
  figure: Figure
  notes: tuple[str, ...] = ()  # lines below the table
  scalars: Rows = {}  # {"RUN: NETWORK": {measure: number}}, of which replicates have a mean

  def table(self) -> str:
    text = tabulate(self.rows, self.headers, floatfmt=".4g", missingval="-")
    return "\n".join((text, *self.notes))


def write(finding: Finding, directory: str | os.PathLike[str], name: str, **about: Any) -> None:
  """Writes DIRECTORY/NAME.json, .png and .svg; the JSON holds `about` beside the numbers."""
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  content = _plain({"analysis": name} | about | {"results": finding.numbers})
  content |= {"scalars": _plain(finding.scalars), "notes": list(finding.notes)}
  temporary = directory / f"{name}.{os.getpid()}.tmp"
  text = json.dumps(content, separators=(",", ":"), allow_nan=False)
  temporary.write_text(text + "\n")
  temporary.replace(directory / f"{name}.json")
  figures.save(finding.figure, directory / name)


def _plain(value: Any) -> Any:
  """NumPy and named tuples as JSON has them; what is no number becomes null."""
  if hasattr(value, "_asdict"):
    value = value._asdict()
  if isinstance(value, dict):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
