"""Means, spreads, and differences of paired runs with their confidence intervals."""

import statistics
from collections.abc import Iterable, Sequence

from okdph_jax.intervals import Interval, interval
from okdph_jax.report.readers import is_student
from okdph_jax.report.runs import Row, Trial, replicates

MEASURES = {  # of a run's accuracy -> its name in tables; the first selects nothing on test
  "students": "mean of students, last epoch",
  "last": "best single network on test, last epoch",
  "chosen": "single network and epoch chosen on validation",
  "best": "best single network and epoch on test",
}


def accuracy(trial: Trial, measure: str) -> float | None:
  """A finished run's test accuracy as one of `MEASURES`, a fraction.

  None if the run has no such number: "students" if its networks have other names, "chosen"
  without a validation split.
  """
  assert trial.result
  if measure == "students":
    readers = trial.result["readers"].items()
    trained = [reader["last"] for name, reader in readers if is_student(name)]
    return statistics.mean(trained) if trained else None
  if measure == "chosen":
    best = trial.result["best_single"]
    return best["accuracy"] if best["chosen_on"] == "validation" else None
  return highest(trial, measure, single=True)


def highest(trial: Trial, which: str, *, single: bool) -> float | None:
  """The highest "last" or "best" accuracy of a run's single networks, or of its ensembles."""
  assert trial.result
  readers = trial.result["readers"].values()
  return max((r[which] for r in readers if r["single"] == single), default=None)


def accuracies(trials: Iterable[Trial], measure: str) -> list[float]:
  """The accuracies of all runs that have this measure."""
  found = (accuracy(trial, measure) for trial in trials)
  return [value for value in found if value is not None]


def of_all(trials: Sequence[Trial], measure: str) -> Interval | None:
  """The mean and interval of a measure; None if a run lacks it."""
  values = accuracies(trials, measure)
  return interval(values) if values and len(values) == len(trials) else None


def difference(ours: Sequence[Trial], theirs: Sequence[Trial], measure: str) -> Interval | None:
  """ours - theirs over pairs of runs, as fractions; None if there are no pairs.

  If an experiment has several runs with the same seed or draw, their mean is used.
  """
  _, key = replicates([*ours, *theirs])
  mine, other = (_by_replicate(trials, key, measure) for trials in (ours, theirs))
  pairs = [mine[name] - other[name] for name in mine if name in other]
  return interval(pairs) if pairs else None


def _by_replicate(trials, key, measure):
  values = {}
  for trial in trials:
    if (value := accuracy(trial, measure)) is not None:
      values.setdefault(key(trial), []).append(value)
  return {name: statistics.mean(found) for name, found in values.items()}


def typical(row: Row) -> float:
  """The accuracy that orders rows: the mean of their students, or of their best networks."""
  return statistics.mean(accuracies(row[1], "students") or accuracies(row[1], "last"))


def clear_best(rows: Sequence[Row], measure: str) -> str | None:
  """The label of the row with the highest mean, if it is clearly better than every other row.

  That is, if the interval of its paired difference to each of them excludes zero.
  """
  measured = [row for row in rows if accuracies(row[1], measure)]
  if len(measured) < 2:
    return None
  label, best = max(measured, key=lambda row: statistics.mean(accuracies(row[1], measure)))
  others = [difference(best, row[1], measure) for row in measured if row[0] != label]
  return label if all(d and d.clear and d.mean > 0 for d in others) else None


def spread(fractions: Sequence[float]) -> str:
  """Fractions as "mean ± standard deviation" in %, ddof = 1; "" for none."""
  if not fractions:
    return ""
  percent = [100 * fraction for fraction in fractions]
  mean = f"{statistics.mean(percent):.2f}"
  return mean if len(percent) == 1 else f"{mean} ± {statistics.stdev(percent):.2f}"
