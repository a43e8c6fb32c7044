"""The teacher: a network of a finished run."""

import os
import re

from okdph_jax.training import logbook


def finished(asked):
  """(folder, reader, result) of the run that "DIR" or "DIR:READER" names."""
  folder, reader = re.fullmatch(r"(.+?)(?::(\w+))?", asked).groups()
  if not os.path.isdir(folder):
    raise ValueError(f"config.teacher={asked}: there is no folder {folder}")
  result = logbook.read_result(folder)
  if result is None:
    raise ValueError(
      f"config.teacher={asked}: no run in {folder} is finished, it has no result.json; "
      "finish it, or name another --workdir"
    )
  return folder, reader or result["best_single"]["reader"], result


def data_signature(dataset):
  """What a network has to know of its data."""
  return {
    "classes": dataset.classes,
    "image": dataset.image_shape,
    "normalisation": {"mean": dataset.mean, "std": dataset.std},
  }
