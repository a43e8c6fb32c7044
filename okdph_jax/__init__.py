"""Online knowledge distillation in JAX: OKDPH and the methods around it.

    import okdph_jax

    result = okdph_jax.fit(config, "runs/digits")      # train, or go on where it stopped
    network = okdph_jax.load("runs/digits")            # a trained network, without its data
    network.predict(images)                            # uint8 [B, H, W, C] -> class names

Names are imported when they are first used, so that importing the package imports no JAX:
`Run` reads configs, metrics and results on machines that have none. The command line is
`python -m okdph_jax.main`.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {  # name -> where it is; a module where both are the same
  "fit": "experiment.fit",
  "load": "run",
  "evaluate": "experiment.evaluation",
  "Interrupted": "runtime.signals",
  "Run": "run",
  "TrainedNetwork": "trained_network",
  "data": "data",
  "hybridization": "hybridization",
  "methods": "methods",
  "models": "models",
  "views": "views",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name):
  if name not in _EXPORTS:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_EXPORTS[name]}")
  return module if name == _EXPORTS[name] else getattr(module, name)


def __dir__():
  return sorted({*globals(), *__all__})
