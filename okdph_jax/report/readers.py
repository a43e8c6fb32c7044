"""Kinds of readers, which pictures tell apart by their lines: what a name of a reader means."""

NETWORK, AVERAGE, SEVERAL = "network", "averaged network", "several networks"
KINDS: tuple[str, ...] = (NETWORK, AVERAGE, SEVERAL)
_SEVERAL = ("ensemble", "fused", "gated", "concatenated")
_AVERAGES = ("hybrid", "center", "mean_", "teacher", "swa_", "ema_")


def kind(reader: str) -> str:
  """Of "student_0", "hybrid", "ensemble", ...: one of `KINDS`."""
  if reader.removeprefix("swa_").removeprefix("ema_").startswith(_SEVERAL):
    return SEVERAL
  return AVERAGE if reader.startswith(_AVERAGES) else NETWORK
