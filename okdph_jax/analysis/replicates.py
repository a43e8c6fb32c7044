"""Runs of a sweep, ENTRY-seedN, as replicates: means, spreads, and paired differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from okdph_jax.intervals import Interval, interval

Rows = Mapping[str, Mapping[str, Any]]  # {"RUN: NETWORK" or "RUN": {measure: number or array}}


def run_of(name: str) -> str:
  """The run's part of a network's name, "okdph-seed42: student_0"."""
  return name.partition(": ")[0]


def entry_and_seed(name: str) -> tuple[str, str]:
  """("born/generation_1", "42") of "born-seed42/generation_1"; without a seed it is ""."""
  entry, _, rest = run_of(name).rpartition("-seed")
  seed, slash, generation = rest.partition("/")
  return (entry + slash + generation, seed) if entry and seed.isdigit() else (run_of(name), "")


def by_entry(rows: Rows) -> dict[str, dict[str, dict[str, Any]]]:
  """{entry: {seed: {measure: mean over the run's networks}}}."""
  found: dict[str, dict[str, list[Any]]] = {}
  for name, row in rows.items():
    entry, seed = entry_and_seed(name)
    found.setdefault(entry, {}).setdefault(seed, []).append(row)
  return {
    entry: {
      seed: {m: np.mean([np.asarray(row[m], np.float64) for row in own], 0) for m in own[0]}
      for seed, own in seeds.items()
    }
    for entry, seeds in found.items()
  }


def repeated(rows: Rows) -> bool:
  """Whether an entry was run with several seeds."""
  runs = {entry_and_seed(name) for name in rows}
  return len(runs) > len({entry for entry, _ in runs})


def merged(rows: Rows) -> Rows:
  """Of repeated runs, each entry's mean over its runs, and "MEASURE_error", their deviation,
  in place of any error of a single network.

  What was not repeated stays as it is, network by network, and so do curves of runs of one
  entry that have not come equally far.
  """
  shapes = {
    (entry_and_seed(name)[0], *((m, np.shape(x)) for m, x in row.items()))
    for name, row in rows.items()
  }
  equal = len(shapes) == len({entry for entry, *_ in shapes})
  if not repeated(rows) or not equal:
    return rows
  found = {}
  for entry, seeds in by_entry(rows).items():
    found[entry] = {}
    for measure in next(iter(seeds.values())):
      if measure.endswith("_error"):
        continue
      values = np.array([row[measure] for row in seeds.values()])
      found[entry][measure] = values.mean(0)
      if len(values) > 1:
        found[entry][f"{measure}_error"] = values.std(0, ddof=1)
  return found


def summary(rows: Rows, baseline: str | None = None) -> dict[str, Any]:
  """Over the runs of each entry, the mean of its networks counting as one value.

  Returns:
    {"entries": {entry: {"runs": n, measure: {"mean", "sd"}}}, "differences": {entry: {"runs":
    n, measure: `Interval`}}}: to `baseline`, over the seeds that both have.
  """
  found = by_entry(rows)
  entries, differences = {}, {}
  for entry, seeds in found.items():
    measures = list(next(iter(seeds.values())))
    columns = {m: np.array([row[m] for row in seeds.values()]) for m in measures}
    entries[entry] = {"runs": len(seeds)} | {
      m: {"mean": x.mean(), "sd": x.std(ddof=1) if len(x) > 1 else None}
      for m, x in columns.items()
    }
    both = [seed for seed in seeds if seed in found.get(baseline or "", {})]
    if entry != baseline and both and baseline is not None:
      theirs = found[baseline]
      differences[entry] = {"runs": len(both)} | {
        m: interval([float(seeds[s][m] - theirs[s][m]) for s in both]) for m in measures
      }
  return {"entries": entries, "differences": differences}


def spread(mean: float, sd: float | None) -> str:
  """mean ± standard deviation; of one value, the value."""
  return _rounded(mean, 4) + (f" ± {_rounded(sd, 2)}" if sd is not None else "")


def difference(found: Interval) -> str:
  """A difference and its interval, if it has one; bold where it leaves out zero."""
  if found.low is None:
    return _rounded(found.mean, 3, "+")
  mean, low, high = (_rounded(x, 3, "+") for x in found[1:])
  text = f"{mean} [{low}, {high}]"
  return f"**{text}**" if found.clear else text


def _rounded(number, digits, sign=""):
  """To so many significant digits, 310 rather than 3.1e+02."""
  return f"{float(f'{number:.{digits}g}'):{sign}g}"


def table(found: Mapping[str, Any], baseline: str | None) -> str:
  """What `summary` found: mean ± standard deviation, then the differences."""

  def text(rows, cell):
    body = [
      (name, row["runs"], *(cell(x) for m, x in row.items() if m != "runs"))
      for name, row in rows.items()
    ]
    measures = [m for m in next(iter(rows.values())) if m != "runs"]
    return tabulate(body, ("entry", "runs", *(m.replace("_", " ") for m in measures)))

  parts = ["Mean ± standard deviation over runs", text(found["entries"], lambda x: spread(**x))]
  if found["differences"]:
    about = f"Paired difference to {baseline} [95 % interval]"
    parts += ["", about, text(found["differences"], difference)]
  return "\n".join(parts)
