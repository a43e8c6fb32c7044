"""The config: its options, their types and bounds, and the checks that come before all else."""

import ml_collections

from okdph_jax.errors import nearest

FIELDS = {  # the config's options and their types
  "seed": int,
  "epochs": int,
  "batch_size": int,
  "network": str,
  "views": tuple,
  "test_view": str,
  "eval_every_epochs": int,
  "data": ml_collections.ConfigDict,
  "method": ml_collections.ConfigDict,
  "wrappers": tuple,
  "teacher": str,
  "generations": int,
  "learning_rate": float,
  "momentum": float,
  "weight_decay": float,
  "milestones": tuple,
  "devices": int | None,
  "snapshots": int,
  "checkpoint_every_minutes": float,
}

LEAST = {
  "epochs": 1,
  "batch_size": 1,
  "eval_every_epochs": 1,
  "generations": 1,
  "snapshots": 0,
  "weight_decay": 0,
}


def check(config):
  """A ValueError, in one line, for a config that says too much, too little or nonsense."""
  check_names(config, FIELDS, "config")
  for name, kind in FIELDS.items():
    check_type(f"config.{name}", config.get(name), kind)
  for wrapper in config.wrappers:
    if not isinstance(wrapper, (dict, ml_collections.ConfigDict)):
      raise ValueError(
        f"config.wrappers has {wrapper!r}; each is a dict, written without dict(...): "
        "\"({'name':'swa'},)\""
      )
  for name, least in LEAST.items():
    if not config[name] >= least:
      raise ValueError(f"config.{name} is {config[name]}; it must be at least {least}")
  if not 0 <= config.seed <= 2**32 - config.generations:  # JAX keeps 32 bits of a seed
    raise ValueError(f"config.seed is {config.seed}; it must lie in 0 to 2**32 - 1")
  if not config.learning_rate > 0:
    raise ValueError(f"config.learning_rate is {config.learning_rate}; it must be positive")
  if not 0 <= config.momentum < 1:
    raise ValueError(f"config.momentum is {config.momentum}; it lies in [0, 1)")
  name = config.method.get("name")
  if name != "kd" and (config.teacher or config.generations > 1):
    raise ValueError(
      f"{name} has no teacher of another run; take the method kd, or leave "
      "config.teacher empty and config.generations at 1"
    )


def check_names(given, known, where):
  """Refuses names in `given` that are not `known`."""
  for name in sorted(set(given) - set(known)):
    hint = nearest(name, known)
    raise ValueError(f"{where} has no option {name!r}{hint} (there are {', '.join(known)})")


def check_type(name, value, kind):
  """Refuses a value of another type; a whole number is a float too, True is no number."""
  if isinstance(value, bool) and kind is not bool or not isinstance(value, kind):
    if not (kind is float and type(value) is int):
      wanted = getattr(kind, "__name__", str(kind))
      raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; it must be {wanted}")
