"""Nonsense for every argument of every op: refused in one line, at once and in no memory."""

import pytest

from okdph_jax import views
from okdph_jax.views.spec import FLOAT_OPS, PIXEL_OPS

NONSENSE = (
  *("nan", "1e400", "-1e400", "-1", "1e308", "10**30", "100000000", "'x'", "None", "True"),
  *("(1,)", "[]", "{}", "1,2,3,4,5", "*a", "x=3", "1<2", "lambda: 0", "9" * 5000, "crop"),
  *("(" * 500 + ")" * 500, "any(" * 60 + "flip" + ")" * 60, "\0", "1)|flop(", "flip|noise"),
)


@pytest.mark.parametrize("op", [*PIXEL_OPS, *FLOAT_OPS])
def test_an_op_refuses_nonsense(op):
  for argument in NONSENSE:
    if op == "any" and argument.startswith("any("):  # views in views are views
      continue
    with pytest.raises(ValueError) as error:
      views.check((f"{op}({argument})",), (32, 32, 3))
    said = str(error.value)
    assert "\n" not in said and len(said) < 600, argument[:40]


def test_their_edges_fit():
  views.check(
    ("crop(0)", "crop(31)", "cutout(1)", "cutout(64)", "rotate(0)", "rotate(180)", "noise(0)"),
    (32, 32, 3),
  )
  for beyond in ("crop(32)", "cutout(65)", "cutout(0)", "rotate(180.1)", "noise(1001)"):
    with pytest.raises(ValueError):
      views.check((beyond,), (32, 32, 3))
