"""A program as an ONNX model: an entry of `_TRANSLATIONS` for each primitive of `lax`.

ONNX's convolutions and poolings are channels-first. A tensor stays in the order of axes in
which it was computed, and is transposed where an operation needs another: a convolutional
network has one transpose, that of the images.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from okdph_jax.export.program import Atom, Operation, Program, Value, is_static

OPSET, IR_VERSION = 18, 8  # onnxruntime reads them from 1.14 on
END = np.iinfo(np.int64).max  # of an axis of any length


def convert(program: Program) -> Any:
  """An `onnx.ModelProto`: `images`, uint8 [batch, H, W, C] -> `logits`, float [batch, K].

  Raises:
    ValueError: in one line, for an operation that ONNX does not have or this module not know.
  """
  import onnx

  graph = Graph(program.image)
  for operation in program.operations:
    if operation.name not in _TRANSLATIONS:
      _refuse(operation)
    _TRANSLATIONS[operation.name](graph, operation)
  logits = graph.cast(graph.whole(program.logits), np.float32)
  graph.nodes.append(onnx.helper.make_node("Identity", [logits], ["logits"]))
  graph.merge_biases()

  def described(name, kind, shape):
    return onnx.helper.make_tensor_value_info(name, kind, ["batch", *shape[1:]])

  described_graph = onnx.helper.make_graph(
    graph.nodes,
    "okdph_jax",
    [described("images", onnx.TensorProto.UINT8, program.image.shape)],
    [described("logits", onnx.TensorProto.FLOAT, program.logits.shape)],
    [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
  )
  model = onnx.helper.make_model(
    described_graph,
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
    producer_name="okdph_jax",
  )
  onnx.checker.check_model(model)
  return model


def _refuse(operation: Operation, what: str = "") -> NoReturn:
  raise ValueError(
    f"ONNX: the network computes {operation.name!r}{what}, which is not translated; leave ONNX "
    "out (--formats=stablehlo,tflite), or write the network with other operations"
  )


class Tensor(NamedTuple):
  """A tensor of the graph: its axis i is axis `order[i]` of the value that it holds.

  An axis of length 1 may stand for a longer one of the value, and is then broadcast.
  """

  name: str
  order: tuple[int, ...]
  shape: tuple[Any, ...]


class Graph:
  """The nodes of the graph so far, and the tensors that hold the values."""

  def __init__(self, image: Value):
    self.nodes: list[Any] = []
    self.constants: dict[str, np.ndarray] = {}
    self.batch = image.shape[0]
    self._held: dict[Value, Tensor] = {}
    self._made: dict[Any, str] = {}  # names of constants and transposes
    self.hold(image, "images")

  def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
    """Appends a node; returns the name of its output."""
    import onnx

    name = f"{kind.lower()}_{len(self.nodes)}"
    self.nodes.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
    return name

  def constant(self, array: Any) -> str:
    """The name of a constant tensor."""
    array = np.asarray(array)
    key = array.dtype.str, array.shape, array.tobytes()
    if key not in self._made:
      self._made[key] = f"constant_{len(self.constants)}"
      self.constants[self._made[key]] = np.array(array, order="C")
    return self._made[key]

  def integers(self, values: Sequence[int]) -> str:
    return self.constant(np.asarray(values, np.int64))

  def cast(self, name: str, dtype: Any) -> str:
    import onnx

    return self("Cast", name, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

  def hold(
    self,
    value: Value,
    name: str,
    order: Sequence[int] | None = None,
    shape: Sequence[Any] | None = None,
  ) -> None:
    """Records that the tensor `name` holds `value`, by default in its own order and shape."""
    order = tuple(range(len(value.shape)) if order is None else order)
    shape = tuple((value.shape[i] for i in order) if shape is None else shape)
    self._held[value] = Tensor(name, order, shape)

  def order(self, *atoms: Atom) -> tuple[int, ...]:
    """The order of axes in which to combine these: the first that is not the plain one."""
    rank = max(len(x.shape) for x in atoms)
    own = tuple(range(rank))
    orders = [
      self._held[x].order for x in atoms if isinstance(x, Value) and len(x.shape) == rank
    ]
    return next((order for order in orders if order != own), own)

  def tensor(self, atom: Atom, order: Sequence[int] | None = None) -> Tensor:
    """A tensor that holds `atom`, in this order of axes, by default its own."""
    order = tuple(range(len(atom.shape)) if order is None else order)
    if not isinstance(atom, Value):
      array = atom.transpose(order)
      return Tensor(self.constant(array), order, array.shape)
    held = self._held[atom]
    places = [held.order.index(axis) for axis in order]
    if held.order == order:
      return held
    if (held.name, order) not in self._made:
      self._made[held.name, order] = self("Transpose", held.name, perm=places)
    return Tensor(self._made[held.name, order], order, tuple(held.shape[i] for i in places))

  def whole(self, atom: Atom, order: Sequence[int] | None = None) -> str:
    """The name of a tensor that holds `atom` in its full shape."""
    name, order, shape = self.tensor(atom, order)
    full = tuple(atom.shape[axis] for axis in order)
    return name if shape == full else self("Expand", name, self.sizes(full))

  def sizes(self, shape: Sequence[Any]) -> str:
    """A shape as a tensor; the batch size is taken from the images."""
    if is_static(shape):
      return self.integers(shape)
    batch = self("Shape", "images", start=0, end=1)
    parts = [self.integers([n]) if is_static([n]) else batch for n in shape]
    return self("Concat", *parts, axis=0)

  def merge_biases(self) -> None:
    """Gives convolutions, as their third input, the constants that are only added to them."""
    readers = [name for node in self.nodes for name in node.input]
    convolutions = {n.output[0]: n for n in self.nodes if n.op_type == "Conv"}
    for node in [n for n in self.nodes if n.op_type == "Add"]:
      for convolved, added in itertools.permutations(node.input):
        convolution, bias = convolutions.get(convolved), self.constants.get(added)
        if convolution is None or bias is None or readers.count(convolved) > 1:
          continue
        channels = len(self.constants.get(convolution.input[1], ()))
        if bias.shape != (1, channels, *(1,) * (bias.ndim - 2)) or len(convolution.input) > 2:
          continue
        convolution.input.append(self.constant(bias.reshape(-1)))
        convolution.output[0] = node.output[0]
        self.nodes.remove(node)
        break
    left = {name for node in self.nodes for name in node.input}
    self.constants = {name: array for name, array in self.constants.items() if name in left}


# Element by element.


def _each(build: Callable[..., str]):
  """The translation by `build(graph, params, *names of the inputs) -> name`."""

  def translate(graph, operation):
    order = graph.order(*operation.inputs)
    tensors = [graph.tensor(x, order if len(x.shape) else ()) for x in operation.inputs]
    name = build(graph, operation.params, *(tensor.name for tensor in tensors))
    shapes = [tensor.shape for tensor in tensors if tensor.shape] or [()]
    longest = (next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True))
    graph.hold(operation.outputs[0], name, order, longest)

  return translate


def _node(kind, **attributes):
  return _each(lambda graph, params, *names: graph(kind, *names, **attributes))


def _maximum(graph, operation):
  for at, x in enumerate(operation.inputs):
    if not isinstance(x, Value) and not np.any(x):  # runtimes join Relu to what is before it
      relu = operation._replace(inputs=(operation.inputs[1 - at],))
      if relu.inputs[0].shape == operation.outputs[0].shape:
        return _node("Relu")(graph, relu)
  return _node("Max")(graph, operation)


def _power(graph, params, x):
  if params["y"] == 2:
    return graph("Mul", x, x)
  return graph("Pow", x, graph.constant(np.float32(params["y"])))


def _select(graph, operation):
  if len(operation.inputs) != 3 or operation.inputs[0].dtype != bool:
    _refuse(operation, " among more than two")
  _each(lambda g, _, which, no, yes: g("Where", which, yes, no))(graph, operation)


# Of many elements.


def _without(order, axes):
  """The order of what is left without these axes."""
  kept = [axis for axis in order if axis not in axes]
  return [sorted(kept).index(axis) for axis in kept]


def _reduce(kind):
  def translate(graph, operation):
    (x,), axes = operation.inputs, operation.params["axes"]
    order = graph.order(x)
    places = graph.integers([order.index(axis) for axis in axes])
    name = graph(kind, graph.whole(x, order), places, keepdims=0)
    graph.hold(operation.outputs[0], name, _without(order, axes))

  return translate


def _argument(kind):
  def translate(graph, operation):
    (x,), (axis,) = operation.inputs, operation.params["axes"]
    name = graph(kind, graph.whole(x), axis=axis, keepdims=0)
    graph.hold(operation.outputs[0], graph.cast(name, operation.params["index_dtype"]))

  return translate


def _convolution(graph, operation):
  params = operation.params
  dimensions, padding = params["dimension_numbers"], params["padding"]
  if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
    _refuse(operation, " transposed")
  if min(n for pair in padding for n in pair) < 0:
    _refuse(operation, " with negative padding")
  image, kernel = operation.inputs
  name = graph(
    "Conv",
    graph.whole(image, dimensions.lhs_spec),
    graph.whole(kernel, dimensions.rhs_spec),
    strides=params["window_strides"],
    pads=[*(low for low, _ in padding), *(high for _, high in padding)],
    dilations=params["rhs_dilation"],
    group=params["feature_group_count"],
  )
  graph.hold(operation.outputs[0], name, dimensions.out_spec)


def _product(graph, operation):
  (left, right), (contracted, batch) = operation.inputs, operation.params["dimension_numbers"]
  if contracted == ((len(left.shape) - 1,), (0,)) and len(right.shape) == 2:
    name = graph("MatMul", graph.whole(left), graph.whole(right))
  else:
    letters = iter(string.ascii_letters)
    shared = dict(zip(contracted[0] + batch[0], letters, strict=False))
    names = [shared.get(i) or next(letters) for i in range(len(left.shape))]
    pairs = zip(contracted[1] + batch[1], contracted[0] + batch[0], strict=True)
    shared = {i: shared[j] for i, j in pairs}
    others = [shared.get(i) or next(letters) for i in range(len(right.shape))]
    out = [names[i] for i in batch[0]]
    out += [c for i, c in enumerate(names) if i not in contracted[0] + batch[0]]
    out += [c for i, c in enumerate(others) if i not in contracted[1] + batch[1]]
    equation = f"{''.join(names)},{''.join(others)}->{''.join(out)}"
    name = graph("Einsum", graph.whole(left), graph.whole(right), equation=equation)
  graph.hold(operation.outputs[0], name)


def _pool(kind):
  def translate(graph, operation):
    (x,), params = operation.inputs, operation.params
    window, strides, padding = (
      params[name] for name in ("window_dimensions", "window_strides", "padding")
    )
    rank, dilation = len(window), params["window_dilation"]
    still = [i for i in range(rank) if (window[i], strides[i], padding[i]) == (1, 1, (0, 0))]
    if len(still) < 2 or set(params["base_dilation"]) != {1}:
      _refuse(operation, " over images or channels")
    order = (still[0], still[-1], *(i for i in range(rank) if i not in (still[0], still[-1])))
    space = order[2:]
    attributes: dict[str, Any] = {
      "kernel_shape": [window[i] for i in space],
      "strides": [strides[i] for i in space],
      "pads": [padding[i][end] for end in (0, 1) for i in space],
    }
    if kind == "MaxPool":
      attributes["dilations"] = [dilation[i] for i in space]
    elif set(dilation) != {1}:
      _refuse(operation, " dilated")
    else:
      attributes["count_include_pad"] = 1
    name = graph(kind, graph.whole(x, order), **attributes)
    if kind == "AveragePool":  # for a sum
      count = graph.constant(np.asarray(math.prod(window), operation.outputs[0].dtype))
      name = graph("Mul", name, count)
    graph.hold(operation.outputs[0], name, order)

  return translate


# Arranging.


def _transpose(graph, operation):
  (x,), permutation = operation.inputs, operation.params["permutation"]
  name, order, shape = graph.tensor(x, graph.order(x))
  graph.hold(operation.outputs[0], name, [permutation.index(i) for i in order], shape)


def _reshape(graph, operation):
  (x,), sizes = operation.inputs, operation.params["new_sizes"]
  order, groups = graph.order(x), _split(x.shape, sizes)
  if groups is None:
    order, axes = range(len(x.shape)), range(len(sizes))
  else:  # every axis is kept or split: in any order of them
    axes = [axis for i in order for axis in groups[i]]
  target = [sizes[axis] for axis in axes]
  if sum(not is_static([n]) for n in target) == 1:
    target = [n if is_static([n]) else -1 for n in target]
  name = graph("Reshape", graph.whole(x, order), graph.sizes(target))
  graph.hold(operation.outputs[0], name, axes)


def _split(old, new):
  """For every old axis the new ones that it becomes; None where some are joined."""
  groups, at = [], 0
  for size in old:
    group, product = [], 1
    while at < len(new) and (not group or (is_static([size, new[at]]) and product < size)):
      product *= new[at]
      group.append(at)
      at += 1
    if not group or product != size:
      return None
    groups.append(group)
  return groups if at == len(new) else None


def _squeeze(graph, operation):
  (x,), axes = operation.inputs, operation.params["dimensions"]
  order = graph.order(x)
  places = graph.integers([order.index(axis) for axis in axes])
  name = graph("Squeeze", graph.whole(x, order), places)
  graph.hold(operation.outputs[0], name, _without(order, axes))


def _broadcast(graph, operation):
  x, places = operation.inputs[0], operation.params["broadcast_dimensions"]
  name, _, shape = graph.tensor(x)
  rank = len(operation.outputs[0].shape)
  if len(places) < rank:
    name = graph("Unsqueeze", name, graph.integers([i for i in range(rank) if i not in places]))
  sizes = dict(zip(places, shape, strict=True))
  graph.hold(operation.outputs[0], name, range(rank), [sizes.get(i, 1) for i in range(rank)])


def _concatenate(graph, operation):
  order = graph.order(*operation.inputs)
  names = [graph.whole(x, order) for x in operation.inputs]
  name = graph("Concat", *names, axis=order.index(operation.params["dimension"]))
  graph.hold(operation.outputs[0], name, order)


def _pad(graph, operation):
  (x, fill), config = operation.inputs, operation.params["padding_config"]
  if any(interior for _, _, interior in config):
    _refuse(operation, " between elements")
  order = graph.order(x)
  pads = graph.integers([config[i][end] for end in (0, 1) for i in order])
  name = graph("Pad", graph.whole(x, order), pads, graph.whole(fill))
  graph.hold(operation.outputs[0], name, order)


def _cut(graph, x, starts, ends, steps):
  """(name, order) of a part of x; None as an end is the end of the axis."""
  order = graph.order(x)
  whole = (0, None, 1)
  parts = list(zip(starts, ends, steps, strict=True))
  axes = [i for i, part in enumerate(parts) if part != whole]
  columns = [
    [parts[i][0] for i in axes],
    [END if parts[i][1] is None else parts[i][1] for i in axes],
    [order.index(i) for i in axes],
    [parts[i][2] for i in axes],
  ]
  name = graph.whole(x, order)
  return graph("Slice", name, *map(graph.integers, columns)) if axes else name, order


def _slice(graph, operation):
  (x,), params = operation.inputs, operation.params
  limits = zip(params["limit_indices"], x.shape, strict=True)
  ends = [None if limit == size else limit for limit, size in limits]
  steps = params["strides"] or [1] * len(ends)
  graph.hold(operation.outputs[0], *_cut(graph, x, params["start_indices"], ends, steps))


def _reverse(graph, operation):
  (x,) = operation.inputs
  back = [i in operation.params["dimensions"] for i in range(len(x.shape))]
  starts, ends = [-b for b in back], [-END if b else None for b in back]
  graph.hold(
    operation.outputs[0], *_cut(graph, x, starts, ends, [-1 if b else 1 for b in back])
  )


def _gather(graph, operation):
  """Constant places along one axis: how `x[:, 0]` and `x[:, ::2]` arrive for any batch size."""
  (x, indices), sizes = operation.inputs, operation.params["slice_sizes"]
  dimensions = operation.params["dimension_numbers"]
  if isinstance(indices, Value) or indices.ndim > 2 or dimensions.operand_batching_dims:
    _refuse(operation, " at computed places")
  places = dict(zip(dimensions.start_index_map, np.atleast_2d(indices).T, strict=True))
  collapsed = dimensions.collapsed_slice_dims
  several = [axis for axis, column in places.items() if len(set(column.tolist())) > 1]
  if indices.ndim == 2 and not several:
    several = list(collapsed[:1])
  if len(several) != indices.ndim - 1 or not set(several) <= set(collapsed):
    _refuse(operation, " at places along several axes")
  starts, ends = [0] * len(x.shape), [None] * len(x.shape)
  for axis, column in places.items():
    if axis not in several and sizes[axis] != x.shape[axis]:
      starts[axis] = int(min(max(column[0], 0), x.shape[axis] - sizes[axis]))
      ends[axis] = starts[axis] + sizes[axis]
  name, order = _cut(graph, x, starts, ends, [1] * len(starts))
  for axis in several:
    name = graph("Gather", name, graph.integers(places[axis].tolist()), axis=order.index(axis))
  if gone := [axis for axis in collapsed if axis not in several]:
    name = graph("Squeeze", name, graph.integers([order.index(axis) for axis in gone]))
  result = operation.outputs[0]
  sliced = [axis for axis in range(len(x.shape)) if axis not in collapsed]
  becomes = dict(zip(sliced, dimensions.offset_dims, strict=True))
  left = set(range(len(result.shape))) - set(dimensions.offset_dims)
  becomes |= dict(zip(several, left, strict=True))
  graph.hold(result, name, [becomes[axis] for axis in order if axis in becomes])


def _pieces(graph, operation):
  (x,), sizes, axis = operation.inputs, operation.params["sizes"], operation.params["axis"]
  ends = np.cumsum(sizes).tolist()
  for value, size, end in zip(operation.outputs, sizes, ends, strict=True):
    starts, stops = [0] * len(x.shape), [None] * len(x.shape)
    starts[axis], stops[axis] = end - size, end
    graph.hold(value, *_cut(graph, x, starts, stops, [1] * len(starts)))


_TRANSLATIONS: dict[str, Callable[[Graph, Operation], None]] = {
  "abs": _node("Abs"),
  "add": _node("Add"),
  "add_any": _node("Add"),
  "and": _node("And"),
  "argmax": _argument("ArgMax"),
  "argmin": _argument("ArgMin"),
  "broadcast_in_dim": _broadcast,
  "ceil": _node("Ceil"),
  "clamp": _each(lambda g, _, low, x, high: g("Min", g("Max", x, low), high)),
  "concatenate": _concatenate,
  "conv_general_dilated": _convolution,
  "convert_element_type": _each(lambda g, params, x: g.cast(x, params["new_dtype"])),
  "copy": _node("Identity"),
  "cos": _node("Cos"),
  "div": _node("Div"),
  "dot_general": _product,
  "eq": _node("Equal"),
  "erf": _node("Erf"),
  "erfc": _each(lambda g, _, x: g("Sub", g.constant(np.float32(1)), g("Erf", x))),
  "exp": _node("Exp"),
  "exp2": _each(lambda g, _, x: g("Pow", g.constant(np.float32(2)), x)),
  "expm1": _each(lambda g, _, x: g("Sub", g("Exp", x), g.constant(np.float32(1)))),
  "floor": _node("Floor"),
  "gather": _gather,
  "ge": _node("GreaterOrEqual"),
  "gt": _node("Greater"),
  "integer_pow": _each(_power),
  "le": _node("LessOrEqual"),
  "log": _node("Log"),
  "log1p": _each(lambda g, _, x: g("Log", g("Add", x, g.constant(np.float32(1))))),
  "logistic": _node("Sigmoid"),
  "lt": _node("Less"),
  "max": _maximum,
  "min": _node("Min"),
  "mul": _node("Mul"),
  "ne": _each(lambda g, _, x, y: g("Not", g("Equal", x, y))),
  "neg": _node("Neg"),
  "not": _node("Not"),
  "or": _node("Or"),
  "pad": _pad,
  "pow": _node("Pow"),
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_prod": _reduce("ReduceProd"),
  "reduce_sum": _reduce("ReduceSum"),
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _pool("AveragePool"),
  "rem": _node("Mod", fmod=1),
  "reshape": _reshape,
  "rev": _reverse,
  "rsqrt": _each(lambda g, _, x: g("Reciprocal", g("Sqrt", x))),
  "select_n": _select,
  "sign": _node("Sign"),
  "sin": _node("Sin"),
  "slice": _slice,
  "split": _pieces,
  "sqrt": _node("Sqrt"),
  "square": _each(lambda g, _, x: g("Mul", x, x)),
  "squeeze": _squeeze,
  "stop_gradient": _node("Identity"),
  "sub": _node("Sub"),
  "tanh": _node("Tanh"),
  "transpose": _transpose,
}
