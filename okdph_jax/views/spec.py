"""Parses specs of views such as "crop(4)|flip|cutout(16)".

A spec is a sequence of ops joined by `|`, applied from left to right, with arguments in
Python's syntax. It may begin with the name of a view, and `any(a, b, c)` draws one of several
specs for each image. A name with parentheses is an op: `cutout` is a view, `cutout(16)` an op.
"""

import ast
import inspect

from okdph_jax.errors import nearest, one_line, shown
from okdph_jax.views import ops, policies

# The paper's five compositions (arXiv:2303.14666, supplement Table 2).
VIEWS = {
  "hflip": "crop(4)|flip",
  "hflip+rot": "crop(4)|flip|rotate(15)",
  "cutout": "crop(4)|flip|cutout(16)",
  "augment": "crop(4)|randaugment",
  "auto_aug": "crop(4)|autoaugment",
}
PIXEL_OPS = {  # uint8 -> uint8
  "plain": ops.plain,
  "crop": ops.crop,
  "flip": ops.flip,
  "rotate": ops.rotate,
  "cutout": ops.cutout,
  "randaugment": policies.randaugment,
  "autoaugment": policies.autoaugment,
  "any": ops.any,
}
FLOAT_OPS = {"noise": ops.noise}  # on the normalised image


def parse(spec: str) -> tuple[list[ops.Op], list[ops.Op]]:
  """(ops before the normalisation, ops after it) of a spec.

  Raises:
    ValueError: in one line, for anything that is not a spec.
  """
  pixel, after = [], []
  for position, node in enumerate(_parts(_tree(spec))):
    name = ast.unparse(node.func if isinstance(node, ast.Call) else node).replace(" ", "")
    if name in VIEWS and not isinstance(node, ast.Call):
      if position:
        raise ValueError(
          f"view {shown(spec, 200)}: {name!r} is a view ({VIEWS[name]}), which can only come "
          "first; an op needs parentheses"
        )
      pixel += parse(VIEWS[name])[0]
    elif name in FLOAT_OPS:
      after.append(_call(FLOAT_OPS[name], name, node, spec))
    elif name not in PIXEL_OPS:
      raise ValueError(_unknown(name, spec))
    elif after:
      raise ValueError(
        f"view {shown(spec, 200)}: {name!r} works on pixels and must come before ops on the "
        f"normalised image ({', '.join(FLOAT_OPS)})"
      )
    else:
      pixel.append(_call(PIXEL_OPS[name], name, node, spec))
  return pixel, after


def _tree(spec):
  if not isinstance(spec, str):
    raise ValueError(f"a view must be a string such as 'crop(4)|flip', not {shown(spec)}")
  try:
    return ast.parse(spec.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    reason = getattr(error, "msg", None) or one_line(error)
    raise ValueError(
      f"view {shown(spec, 200)} cannot be parsed ({reason}); write ops joined by |, such as "
      "'crop(4)|flip|cutout(16)'"
    ) from None


def _parts(node):
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return _parts(node.left) + _parts(node.right)
  return [node]


def _call(factory, name, node, spec):
  read = _alternative if name == "any" else _number
  plain = [
    parameter.replace(annotation=inspect.Parameter.empty)
    for parameter in inspect.signature(factory).parameters.values()
  ]
  signature = inspect.Signature(plain)  # without types, for the error message
  try:
    args = [read(arg) for arg in getattr(node, "args", [])]
    named = {keyword.arg: read(keyword.value) for keyword in getattr(node, "keywords", [])}
    signature.bind(*args, **named)
    return factory(*args, **named)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"view {shown(spec, 200)}: {ast.unparse(node)[:60]}: {one_line(error)}; the op is "
      f"{name}{signature}"
    ) from None


def _number(node):
  try:
    return ast.literal_eval(node)
  except ValueError:
    raise ValueError(f"{shown(ast.unparse(node))} is not a number") from None


def _alternative(node):
  pixel, after = parse(ast.unparse(node))
  if after:
    raise ValueError("ops on the normalised image must follow any(...), not be inside")
  return ops.chain(*pixel)


def _unknown(name, spec):
  known = [*PIXEL_OPS, *FLOAT_OPS, *VIEWS]
  hint = nearest(name, known) or ";"
  return (
    f"view {shown(spec, 200)}: unknown op {shown(name)}{hint} "
    f"ops: {', '.join([*PIXEL_OPS, *FLOAT_OPS])}; named views: {', '.join(VIEWS)}"
  )
