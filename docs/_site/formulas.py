r"""The formulas of docstrings as LaTeX, and LaTeX as MathML.

    L_m = CE(z_m, y) + 1 / (M - 1) sum_{j != m} KL_1(sg[z_j] -> z_m)

is a line of a docstring, and becomes `L_{m} = \mathrm{CE}(z_{m}, y) + ...`. So a method has one
formula, beside its code, and the site shows that one. Browsers draw MathML themselves: pages
need no script and no fonts from elsewhere.
"""

import re

from latex2mathml.converter import convert

GREEK = ("alpha", "beta", "delta", "eta", "gamma", "lambda", "mu", "omega", "phi", "rho")
GREEK += ("tau", "theta")
SYMBOLS = {"eps": r"\varepsilon", "lr": r"\mathrm{lr}", "wd": r"\mathrm{wd}", "sum": r"\sum"}
SYMBOLS |= {name: rf"\{name}" for name in GREEK}
FUNCTIONS = ("CE", "Dir", "KL", "max", "mean", "min", "ramp", "sg", "softmax")
SYMBOLS |= {name: rf"\mathrm{{{name}}}" for name in FUNCTIONS}
OPERATORS = {
  "<-": r"\leftarrow ",
  "->": r"\to ",
  "!=": r"\neq ",
  "||": r"\|",
  "~": "∼",
  ": ": ":~",
}

TOKEN = re.compile(
  r"`(?P<code>[^`]+)`"
  r"|(?P<small>1e-(?P<power>\d+))"
  r"|(?P<base>[A-Za-z]+)(?P<prime>'?)(?:_(?:\{(?P<braces>[^}]*)\}|(?P<index>[A-Za-z0-9_]+)))?"
  r"|\^(?P<exponent>-?\w)"
  r"|(?P<operator><-|->|!=|\|\||~|: )"
  r"|(?P<gap>;? {2,})"
  r"|(?P<other>.)"
)


def latex(line: str) -> str:
  """A line of a docstring's formula as LaTeX."""
  text = "".join(_symbol(match) for match in TOKEN.finditer(line))
  return re.sub(r"~(?=[,)])|(?<= ) +", "", text).strip()


def _symbol(match):
  part = match.groupdict()
  if part["code"]:
    return rf"\texttt{{{part['code']}}}"
  if part["small"]:
    return f"10^{{-{part['power']}}}"
  if part["base"]:
    return _name(**{key: part[key] for key in ("base", "prime", "braces", "index")})
  if part["exponent"]:
    return f"^{{{part['exponent']}}}"
  if part["gap"]:
    return r"\qquad "
  return OPERATORS.get(part["operator"], part["other"])


def _name(base, prime, braces, index):
  known = base in SYMBOLS or len(base) == 1
  if not known:  # a word, or the name of an option
    return rf"\text{{{f'{base}_{index}' if index else base}}}~"
  symbol = SYMBOLS.get(base, base) + prime
  if braces:
    return f"{symbol}_{{{latex(braces)}}}"
  if index:
    upright = index if len(index) == 1 else rf"\mathrm{{{index}}}"
    return f"{symbol}_{{{upright}}}"
  return symbol + " "


def lines(block: str) -> list[str]:
  """The formulas of an indented block; a line indented further continues the one before."""
  found: list[str] = []
  for line in block.splitlines():
    if line.startswith("     ") and found:
      found[-1] += " " + line.strip()
    else:
      found.append(line.strip())
  return found


def mathml(source: str, *, display: bool) -> str:
  """LaTeX as MathML."""
  return convert(source, display="block" if display else "inline")
