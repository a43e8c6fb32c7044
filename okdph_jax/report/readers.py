"""What the name of a reader says: the kind of network, and whether a run trained it."""

import re

NETWORK, AVERAGE, SEVERAL = "network", "averaged network", "several networks"
KINDS: tuple[str, ...] = (NETWORK, AVERAGE, SEVERAL)
_SEVERAL = ("ensemble", "fused", "gated", "concatenated")
_AVERAGES = ("hybrid", "center", "mean_", "teacher", "swa_", "ema_")


def kind(reader: str) -> str:
  """Of "student_0", "hybrid", "ensemble", ...: one of `KINDS`."""
  if reader.removeprefix("swa_").removeprefix("ema_").startswith(_SEVERAL):
    return SEVERAL
  return AVERAGE if reader.startswith(_AVERAGES) else NETWORK


def is_student(reader: str) -> bool:
  """Whether it is one of the networks that the run trains, each with weights of its own.

  Not so: averages of weights ("hybrid", "teacher", "swa_student_0"), and ensembles.
  """
  return re.fullmatch(r"student_\d+|leader", reader) is not None
