"""Batch normalisation folded into the convolutions before it."""

import numpy as np
from jax import lax

from okdph_jax.export.program import Atom, Operation, Program, Value, used


def fold(program: Program) -> Program:
  """The same function, with scales and shifts per channel folded into convolutions.

      (conv(x, W) - mean) * s + bias = conv(x, s W) + (bias - s mean)

  is computed in float64 and rounded once, so only the order of float32 sums changes. It is
  done if the kernel is constant and nothing else reads the convolution's output.
  """
  readers = _readers(program)
  made_by = {x: operation for operation in program.operations for x in operation.outputs}
  replaced: dict[Value, list[Operation]] = {}  # output of a chain -> its new operations
  for operation in program.operations:
    if operation.name != "conv_general_dilated" or isinstance(operation.inputs[1], Value):
      continue
    if operation.params["batch_group_count"] != 1:
      continue
    dimensions = operation.params["dimension_numbers"]
    out, kernel = operation.outputs[0], np.asarray(operation.inputs[1], np.float64)
    scale, shift, end = np.ones(1), np.zeros(1), out
    while len(readers.get(end, ())) == 1:
      ((reader, at),) = readers[end]
      if reader is None or reader.name not in ("add", "sub", "mul", "div"):
        break
      other = _per_channel(reader, 1 - at, dimensions.out_spec[1], made_by)
      if other is None:
        break
      scale, shift = _composed(reader.name, at, scale, shift, other)
      end = reader.outputs[0]
    if end is out:
      continue
    along = [1] * kernel.ndim
    along[dimensions.rhs_spec[0]] = -1
    kernel = (kernel * scale.reshape(along)).astype(out.dtype)
    bias = np.broadcast_to(shift, out.shape[dimensions.out_spec[1]]).astype(out.dtype)
    along = [1] * len(out.shape)
    along[dimensions.out_spec[1]] = -1
    convolved = Value(out.shape, out.dtype)
    replaced[end] = [
      Operation(
        operation.primitive, (operation.inputs[0], kernel), (convolved,), operation.params
      ),
      Operation(lax.add_p, (convolved, bias.reshape(along)), (end,), {}),
    ]
  operations = [
    new for old in program.operations for new in replaced.get(old.outputs[0], [old])
  ]
  return Program(program.image, tuple(used(operations, program.logits)), program.logits)


def _readers(program) -> dict[Value, list[tuple[Operation | None, int]]]:
  """{value: [(operation that reads it, as which input), ...]}; None reads the logits."""
  found: dict[Value, list] = {}
  for operation in program.operations:
    for at, x in enumerate(operation.inputs):
      if isinstance(x, Value):
        found.setdefault(x, []).append((operation, at))
  if isinstance(program.logits, Value):
    found.setdefault(program.logits, []).append((None, 0))
  return found


def _per_channel(reader, at, axis, made_by) -> np.ndarray | None:
  """Input `at` of an operation as float64 [C] or [1]; None if it is not such a constant."""
  if reader.name == "div" and at == 0:
    return None
  x: Atom = reader.inputs[at]
  shape = np.shape(x)
  if isinstance(x, Value):  # a constant, repeated over the batch
    source = made_by.get(x)
    if (
      source is None or source.name != "broadcast_in_dim" or isinstance(source.inputs[0], Value)
    ):
      return None
    sizes = dict(
      zip(source.params["broadcast_dimensions"], np.shape(source.inputs[0]), strict=True)
    )
    x, shape = source.inputs[0], tuple(sizes.get(i, 1) for i in range(len(x.shape)))
  if any(size != 1 for i, size in enumerate(shape) if i != axis):
    return None
  return np.asarray(x, np.float64).reshape(-1)


def _composed(name, at, scale, shift, other):
  """(scale, shift) after `scale y + shift` became input `at` of an operation with `other`."""
  if name == "mul":
    return scale * other, shift * other
  if name == "div":
    return scale / other, shift / other
  if name == "add":
    return scale, shift + other
  return (scale, shift - other) if at == 0 else (-scale, other - shift)
