"""Configs as run directories hold them: read from older versions, and compared on a resume."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

SOURCES = ("teacher", "init_from")  # options that name another run
USERS_OWN = ("folder", "arrays")  # datasets whose images are those at `data.dir`

# Options that do not affect results; a run may be resumed with other values.
NO_EFFECT = {"data.dir", "checkpoint_every_minutes", "log_every_steps"}

# Options of where and how a run computes. They affect at most the last bits of its results: a
# run may be resumed with other values, and prints that they changed.
LAST_BITS = {"devices", "student_groups", "steps_per_dispatch", "views_on"}

# Options that were added to configs later, with the values that all earlier runs had.
ADDED = {
  "network_options": {},
  "init_from": "",
  "teacher_network": "",
  "test_view": "plain",
  "log_every_steps": 0,
  "accumulate": 1,
  "batch_norm_images": None,
  "compute": "float32",
  "views_on": "device",
  "nesterov": False,
  "student_groups": 1,
  "steps_per_dispatch": 1,
}
ADDED_DATA = {"seed": 42, "normalise_as": ""}
ADDED_METHOD = {
  "okdph": {"hybrid_teaches": True},
  "base": {"same_init": False, "label_smoothing": 0.0},
  **dict.fromkeys(("dml", "kdcl"), {"same_init": False}),
}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config with the options that were added after it was written."""
  method = config.get("method", {})
  return {
    **ADDED,
    **config,
    "data": ADDED_DATA | config.get("data", {}),
    "method": ADDED_METHOD.get(method.get("name"), {}) | method,
  }


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """["data.fraction: 1.0 -> 0.5", ...]: the options in which two configs differ.

  If there are none, a run of the old config may be resumed with the new one: the options of
  `NO_EFFECT` and `LAST_BITS` are ignored. A single view equals a copy of it for each network,
  and tuples equal lists, because JSON has no tuples.
  """
  before, after = flat(completed(old)), flat(completed(new))
  for config in (before, after):
    if len(set(config.get("views", ()))) == 1:
      config["views"] = config["views"][:1]
  names = sorted((before.keys() | after.keys()) - NO_EFFECT - LAST_BITS)

  def show(config, name):
    return json.dumps(config[name]) if name in config else "absent"

  return [
    f"{name}: {show(before, name)} -> {show(after, name)}"
    for name in names
    if show(before, name) != show(after, name)
  ]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """{"data": {"name": x}} -> {"data.name": x}, with values as JSON returns them."""
  return dict(_items(json.loads(json.dumps(config))))


def _items(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, dict) and value:
      yield from _items(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value
