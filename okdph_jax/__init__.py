"""Online knowledge distillation in JAX: OKDPH and the methods around it.

    import okdph_jax

    result = okdph_jax.fit(config, "runs/digits")      # train, or resume the run
    network = okdph_jax.load("runs/digits")            # a trained network, without its data
    network.predict(images)                            # uint8 [B, H, W, C] -> class names

Names are imported when they are first used, so that importing the package imports no JAX:
`Run` reads configs, metrics and results on machines without JAX. The command line is `okdph`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from okdph_jax import data, hybridization, methods, models, views
  from okdph_jax.experiment.config import load_config
  from okdph_jax.experiment.evaluation import evaluate
  from okdph_jax.experiment.fit import fit, fit_seeds
  from okdph_jax.run import Run, load
  from okdph_jax.runtime.signals import Interrupted
  from okdph_jax.trained_network import TrainedNetwork

__version__ = "0.1.0"

__all__ = [
  "Interrupted",
  "Run",
  "TrainedNetwork",
  "__version__",
  "data",
  "evaluate",
  "fit",
  "fit_seeds",
  "hybridization",
  "load",
  "load_config",
  "methods",
  "models",
  "views",
]

_MODULE = {  # name -> the module that defines it, for names that are not modules
  "fit": "experiment.fit",
  "fit_seeds": "experiment.fit",
  "load_config": "experiment.config",
  "load": "run",
  "evaluate": "experiment.evaluation",
  "Interrupted": "runtime.signals",
  "Run": "run",
  "TrainedNetwork": "trained_network",
}


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_MODULE.get(name, name)}")
  return getattr(module, name) if name in _MODULE else module


def __dir__() -> list[str]:
  return __all__
