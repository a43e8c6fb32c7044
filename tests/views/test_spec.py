"""The language of views."""

import jax
import numpy as np
import pytest

from okdph_jax.errors import shown
from okdph_jax.views import ops, policies, spec

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
KEY = jax.random.key(3)


def traced(*pixel):
  """What the ops compute, as text, and the constants in it: equal for equal ops."""
  program = jax.make_jaxpr(ops.chain(*pixel))(KEY, IMAGE)
  return str(program), [np.asarray(constant).tobytes() for constant in program.consts]


def parsed(text):
  pixel, after = spec.parse(text)
  assert not after
  return traced(*pixel)


@pytest.mark.parametrize(
  "text, factories",
  [
    ("plain", [ops.plain()]),
    ("hflip", [ops.crop(4), ops.flip()]),
    ("hflip+rot", [ops.crop(4), ops.flip(), ops.rotate(15)]),
    ("cutout", [ops.crop(4), ops.flip(), ops.cutout(16)]),
    ("augment", [ops.crop(4), policies.randaugment()]),
    ("auto_aug", [ops.crop(4), policies.autoaugment()]),
    ("cutout(16)", [ops.cutout(16)]),
    (" crop(2) | flip() | cutout(size=4) ", [ops.crop(2), ops.flip(), ops.cutout(4)]),
    ("hflip + rot | cutout(4)", [ops.crop(4), ops.flip(), ops.rotate(15), ops.cutout(4)]),
  ],
)
def test_a_spec_is_its_ops_in_order(text, factories):
  assert parsed(text) == traced(*factories)


def test_different_specs_are_told_apart():
  texts = ("crop(4)", "crop(3)", "rotate(15)", "rotate(30)", "cutout", "cutout(16)", "augment")
  assert len({str(parsed(text)) for text in texts}) == len(texts)


def test_any_mixes_named_views_and_specs():
  expected = ops.any(
    ops.chain(ops.crop(4), ops.flip()),
    ops.chain(ops.crop(4), ops.flip(), ops.cutout(16)),
    ops.chain(ops.crop(2), ops.rotate(30)),
  )
  text = "any(hflip, cutout, crop(2)|rotate(30))"
  assert parsed(text) == traced(expected)


def test_noise_comes_after_the_normalisation():
  for text, before in (
    ("hflip|noise", 2),
    ("noise(std=0.5)", 0),
    ("any(plain, flip)|noise", 1),
  ):
    pixel, after = spec.parse(text)
    assert (len(pixel), len(after)) == (before, 1)


@pytest.mark.parametrize(
  "text, says",
  [
    ("crop(4)|cutuot(16)", "unknown op 'cutuot'; did you mean 'cutout'.*ops:.*views:"),
    ("hflip+rott", "did you mean 'hflip\\+rot'"),
    ("base", "unknown op 'base'; ops: plain, crop"),
    ("crop", "crop: missing a required argument: 'pad'.*the op is crop\\(pad\\)"),
    ("crop(4, 5)", "too many positional arguments.*crop\\(pad\\)"),
    ("crop(-1)", "pad must be a whole number >= 0, not -1"),
    ("crop(1.5)", "not 1.5"),
    ("cutout(0)", "size must be a whole number >= 1, not 0"),
    ("cutout(16, width=3)", "unexpected keyword argument 'width'"),
    ("rotate('a')", "degrees must be a number"),
    ("crop(four)", "'four' is not a number"),
    ("noise(-1)", "std must be a number from 0 to 1000, not -1"),
    ("noise(1e400)", "std must be a number from 0 to 1000, not inf"),
    ("rotate(1e400)", "degrees must be a number from 0 to 180, not inf"),
    ("rotate(True)", "degrees must be a number from 0 to 180, not True"),
    ("crop(True)", "pad must be a whole number >= 0, not True"),
    ("noise|flip", "'flip' works on pixels and must come before.*noise"),
    ("hflip|noise|cutout(16)", "'cutout' works on pixels"),
    ("crop(4)|cutout", "is a view.*only come first"),
    ("any()", "at least one"),
    ("any(hflip|noise, flip)", "must follow any"),
    ("any(hflip, flipp)", "did you mean 'flip'"),
    ("", "cannot be parsed"),
    ("crop(4)|", "cannot be parsed"),
    ("crop(4))", r"cannot be parsed \(unmatched '\)'\)"),
    ("crop(4)\0", r"cannot be parsed \(source code string cannot contain null bytes\)"),
    ("crop(4)\nflip", "cannot be parsed"),
    ("crop(4)&flip", "unknown op"),
    (4, "a view must be a string"),
  ],
)
def test_what_is_not_a_view_is_refused_in_one_line(text, says):
  with pytest.raises(ValueError, match=says) as caught:
    spec.parse(text)
  assert "\n" not in str(caught.value) and shown(text, 200) in str(caught.value)
