"""All methods and wrappers by name."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from okdph_jax.methods.base import base
from okdph_jax.methods.dml import dml
from okdph_jax.methods.dot import dot
from okdph_jax.methods.ema import ema
from okdph_jax.methods.ffl import ffl
from okdph_jax.methods.gradient_cosine import gradient_cosine
from okdph_jax.methods.kd import kd
from okdph_jax.methods.kdcl import kdcl
from okdph_jax.methods.kr import kr
from okdph_jax.methods.mean_teacher import mean_teacher
from okdph_jax.methods.okddip import okddip
from okdph_jax.methods.okdph import okdph
from okdph_jax.methods.one import one
from okdph_jax.methods.pcl import pcl
from okdph_jax.methods.protocol import Context, Method
from okdph_jax.methods.reestimate import reestimate
from okdph_jax.methods.sam import asam, sam
from okdph_jax.methods.swa import swa
from okdph_jax.methods.weighted import weighted

METHODS: dict[str, Callable[..., Method]] = {  # name -> builder(context, **options)
  "base": base,
  "kd": kd,
  "dml": dml,
  "one": one,
  "kdcl": kdcl,
  "okddip": okddip,
  "ffl": ffl,
  "pcl": pcl,
  "kr": kr,
  "mean_teacher": mean_teacher,
  "okdph": okdph,
}

WRAPPERS: dict[str, Callable[..., Method]] = {  # name -> wrapper(method, context, **options)
  "sam": sam,
  "asam": asam,
  "swa": swa,
  "ema": ema,
  "dot": dot,
  "weighted": weighted,
  "gradient_cosine": gradient_cosine,
  "reestimate": reestimate,
}


def assemble(
  context: Context, method: Mapping[str, Any], wrappers: Iterable[Mapping[str, Any]] = ()
) -> Method:
  """Builds the method of `config.method`, wrapped by `config.wrappers`.

  method: {"name": ..., option: value, ...}. wrappers: such dicts, the innermost first.

      >>> from okdph_jax import models
      >>> net = models.build("resnet8", classes=10)
      >>> context = Context(net, classes=10, epoch_steps=391, epochs=60)
      >>> method = assemble(context, {"name": "okdph", "students": 2}, [{"name": "sam"}])
      >>> method.views  # one augmentation for each student and one for the hybrid
      3

  Raises:
    ValueError: in one line, for an unknown name or an option out of range.
  """
  builder, options = _apart(METHODS, method)
  built = builder(context, **options)
  for wrapper in wrappers:
    builder, options = _apart(WRAPPERS, wrapper)
    built = builder(built, context, **options)
  return built


def _apart(table, options):
  """(the builder called options["name"], the other options)."""
  options = dict(options)
  name = options.pop("name")
  if name not in table:
    kind = "method" if table is METHODS else "wrapper"
    raise ValueError(
      f"there is no {kind} {name!r} (there are {', '.join(table)}); if it is your own, first "
      "import the module that registers it"
    )
  return table[name], options
