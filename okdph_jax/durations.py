"""Durations: "5 steps" and "1 epoch" as steps, seconds as hours, minutes and seconds."""

import datetime
import re

MOST_STEPS = 2**31 - 1  # a step is an int32
REFERENCE_EPOCHS = 300  # of the paper's runs, to which durations without a unit refer


def parse(duration: str) -> tuple[int, str]:
  """ "5 steps" -> (5, "step"), "1 epoch" -> (1, "epoch"); ValueError for anything else."""
  match = re.fullmatch(r"\s*([1-9]\d*)\s*(step|epoch)s?\s*", str(duration))
  if not match:
    raise ValueError(f"{duration!r} is not a duration; write '5 steps' or '1 epoch'")
  return int(match[1]), match[2]


def steps(duration: str, epoch_steps: int) -> int:
  """A duration, "5 steps" or "1 epoch", as a number of steps."""
  count, unit = parse(duration)
  count *= epoch_steps if unit == "epoch" else 1
  if count > MOST_STEPS:
    raise ValueError(f"{duration!r} is {count} steps; the maximum is {MOST_STEPS}")
  return count


def clock(seconds: float) -> str:
  """A number of seconds as "1:02:03" or "2 days, 1:02:03"."""
  return str(datetime.timedelta(seconds=round(seconds)))
