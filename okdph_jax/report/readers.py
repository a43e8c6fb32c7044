"""The kind of a reader, by its name: a network, an average, or several networks."""

import re

NETWORK, AVERAGE, SEVERAL = "network", "averaged network", "several networks"
KINDS: tuple[str, ...] = (NETWORK, AVERAGE, SEVERAL)
_SEVERAL = ("ensemble", "fused", "gated", "concatenated")
_AVERAGES = ("hybrid", "center", "mean_", "teacher", "swa_", "ema_")


def kind(reader: str) -> str:
  """The kind of "student_0", "hybrid", "ensemble", ...: one of `KINDS`."""
  reader = reader.removeprefix("reestimated_")  # of the same weights
  if reader.removeprefix("swa_").removeprefix("ema_").startswith(_SEVERAL):
    return SEVERAL
  return AVERAGE if reader.startswith(_AVERAGES) else NETWORK


def is_student(reader: str) -> bool:
  """Whether it is a network that the run trains by gradient descent.

  Averages of weights ("hybrid", "teacher", "swa_student_0") and ensembles are not.
  """
  return re.fullmatch(r"student_\d+|leader", reader) is not None
