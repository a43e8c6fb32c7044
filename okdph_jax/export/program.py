"""A trained network as a program: a list of `lax` operations, from raw pixels to logits.

It is the network's jaxpr with calls inlined and with constants computed. It has only stock
operations, not the convolutions with which this package trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.core import Literal, Primitive
from jaxtyping import Array, Float, UInt8

from okdph_jax import views
from okdph_jax.trained_network import TrainedNetwork


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
  """The result of an operation. In its shape only the batch size is symbolic."""

  shape: tuple[Any, ...]
  dtype: np.dtype


Atom = Value | np.ndarray  # computed from the images, or constant


class Operation(NamedTuple):
  """One application of a primitive of `lax`, such as `add` or `conv_general_dilated`."""

  primitive: Primitive
  inputs: tuple[Atom, ...]
  outputs: tuple[Value, ...]
  params: dict[str, Any]

  @property
  def name(self) -> str:
    return self.primitive.name

  def __call__(self, *inputs: Any) -> Sequence[Any]:
    """Applies it to arrays."""
    results = self.primitive.bind(*inputs, **self.primitive.get_bind_params(self.params))
    return results if self.primitive.multiple_results else [results]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """Operations in order, from `image`, uint8 [b, H, W, C], to `logits`, float [b, K].

  `program(images)` is for `jit` and export, with images of the batch size it was traced for.
  """

  image: Value
  operations: tuple[Operation, ...]
  logits: Atom

  def __call__(self, images: UInt8[Array, "B H W C"]) -> Float[Array, "B K"]:
    """The logits, computed by JAX."""
    values: dict[Value, Any] = {self.image: images}
    for operation in self.operations:
      inputs = [values[x] if isinstance(x, Value) else x for x in operation.inputs]
      values.update(zip(operation.outputs, operation(*inputs), strict=True))
    logits = values[self.logits] if isinstance(self.logits, Value) else self.logits
    return jnp.asarray(logits, jnp.float32)


def trace(network: TrainedNetwork, batch: int | None = None) -> Program:
  """The `Program` of a trained network for `batch` images, by default for any number.

  It includes the normalisation, but no test view other than "plain".
  """
  normalise = partial(views.normalise(network.mean, network.std), jax.random.key(0))

  def logits(images):
    return network.module.apply(network.variables, normalise(images), False)

  def each(images):
    return jax.vmap(lambda image: logits(image[None])[0])(images)

  shape = export.symbolic_shape(f"b, {', '.join(map(str, network.image_shape))}")
  images = jax.ShapeDtypeStruct(shape if batch is None else (batch, *shape[1:]), jnp.uint8)
  try:
    closed = jax.make_jaxpr(logits)(images)
  except Exception:  # the network uses its batch size as a number, len(x): map over the images
    closed = jax.make_jaxpr(each)(images)
  (image,) = (_value(variable.aval) for variable in closed.jaxpr.invars)
  operations: list[Operation] = []
  (found,) = _inline(closed.jaxpr, closed.consts, [image], operations)
  return Program(image, tuple(used(operations, found)), found)


def _inline(jaxpr, constants, arguments, operations) -> list[Atom]:
  """Appends the operations of `jaxpr`, calls inlined, constants computed; its outputs."""
  atoms: dict[Any, Atom] = dict(
    zip(jaxpr.constvars, map(_constant, constants), strict=True)
  ) | dict(zip(jaxpr.invars, arguments, strict=True))

  def read(atom):
    return (
      np.asarray(atom.val, _value(atom.aval).dtype)
      if isinstance(atom, Literal)
      else atoms[atom]
    )

  for equation in jaxpr.eqns:
    inputs = tuple(map(read, equation.invars))
    called = _called(equation)
    if called is not None:
      inner, consts = called
      outputs = _inline(inner, consts, inputs, operations)
    else:
      outputs = [_value(variable.aval) for variable in equation.outvars]
      operation = Operation(equation.primitive, inputs, tuple(outputs), dict(equation.params))
      shapes = [n for value in outputs for n in value.shape]
      if any(isinstance(x, Value) for x in inputs) or not all(map(_is_static, shapes)):
        operations.append(operation)
      else:
        outputs = [_constant(x) for x in operation(*inputs)]
    atoms.update(zip(equation.outvars, outputs, strict=True))
  return list(map(read, jaxpr.outvars))


# Primitives that only call a jaxpr, and the parameter that holds it.
_CALLS = {
  "jit": "jaxpr",
  "closed_call": "call_jaxpr",
  "core_call": "call_jaxpr",
  "remat2": "jaxpr",
  "checkpoint": "jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


def _called(equation):
  """(jaxpr, constants) if the equation only calls a jaxpr, else None."""
  jaxpr = equation.params.get(_CALLS.get(equation.primitive.name))
  if jaxpr is None:
    return None
  return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def _constant(x):
  keys = jnp.issubdtype(x.dtype, jax.dtypes.extended)  # PRNG keys, which NNX modules create
  return x if keys else np.asarray(x)


def _value(aval):
  return Value(tuple(aval.shape), aval.dtype)


def _is_static(size):
  return isinstance(size, (int, np.integer))


def is_static(shape: Sequence[Any]) -> bool:
  """Whether no size in `shape` depends on the batch size."""
  return all(map(_is_static, shape))


def used(operations: Sequence[Operation], result: Atom) -> Iterator[Operation]:
  """The operations that `result` depends on, in order."""
  needed, kept = {result} if isinstance(result, Value) else set(), []
  for operation in reversed(operations):
    if needed.intersection(operation.outputs):
      kept.append(operation)
      needed |= {x for x in operation.inputs if isinstance(x, Value)}
  return reversed(kept)
