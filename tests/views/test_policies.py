"""RandAugment and AutoAugment: what is drawn, how often, against the specification's tables."""

import itertools
import math
from collections import Counter

import jax
import numpy as np
import pytest

from okdph_jax.views import edits, policies

SIZE = 32
DRAWS = 40000


def draw(policy, n=DRAWS):
  """What the policy's two steps apply to n images: two lists of n `Edit`s as keys."""

  def record(drawn, edit):
    return (drawn if isinstance(drawn, tuple) else ()) + (edit,)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(edits, "apply", record)
    keys = jax.random.split(jax.random.key(0), n)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    drawn = jax.jit(jax.vmap(policy, (0, None)))(keys, image)
  return [list(map(name, zip(*map(np.asarray, edit), strict=True))) for edit in drawn]


def name(edit):
  """An `Edit` as something to count, its factor rounded."""
  return tuple(np.ravel(edit[0])) + tuple(map(int, edit[1:5])) + (round(float(edit[5]), 5),)


def known(op, value=None):
  return name(edits.edit(op, value, SIZE, SIZE))


def signed(op, value, around=0):
  return [known(op, around + value), known(op, around - value)]


# The specification's section 2, each op with its outcomes at index 9.
OUTCOMES = {
  "Identity": [known("Identity")],
  "ShearX": signed("ShearX", 0.09),
  "ShearY": signed("ShearY", 0.09),
  "TranslateX": signed("TranslateX", 4),
  "TranslateY": signed("TranslateY", 4),
  "Rotate": signed("Rotate", 9),
  "Brightness": signed("Brightness", 0.27, 1),
  "Color": signed("Color", 0.27, 1),
  "Contrast": signed("Contrast", 0.27, 1),
  "Sharpness": signed("Sharpness", 0.27, 1),
  "Posterize": [known("Posterize", 7)],
  "Solarize": [known("Solarize", 178.5)],
  "AutoContrast": [known("AutoContrast")],
  "Equalize": [known("Equalize")],
}

# Section 3 with its resolved values: (op, probability, value).
TABLE = [
  (("Posterize", 0.4, 4), ("Rotate", 0.6, 30)),
  (("Solarize", 0.6, 255 * 4 / 9), ("AutoContrast", 0.6, None)),
  (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
  (("Posterize", 0.6, 5), ("Posterize", 0.6, 5)),
  (("Equalize", 0.4, None), ("Solarize", 0.2, 255 * 5 / 9)),
  (("Equalize", 0.4, None), ("Rotate", 0.8, 80 / 3)),
  (("Solarize", 0.6, 170), ("Equalize", 0.6, None)),
  (("Posterize", 0.8, 6), ("Equalize", 1, None)),
  (("Rotate", 0.2, 10), ("Solarize", 0.6, 255 / 9)),
  (("Equalize", 0.6, None), ("Posterize", 0.4, 5)),
  (("Rotate", 0.8, 80 / 3), ("Color", 0.4, 0)),
  (("Rotate", 0.4, 30), ("Equalize", 0.6, None)),
  (("Equalize", 0, None), ("Equalize", 0.8, None)),
  (("Invert", 0.6, None), ("Equalize", 1, None)),
  (("Color", 0.6, 0.4), ("Contrast", 1, 0.8)),
  (("Rotate", 0.8, 80 / 3), ("Color", 1, 0.2)),
  (("Color", 0.8, 0.8), ("Solarize", 0.8, 510 / 9)),
  (("Sharpness", 0.4, 0.7), ("Invert", 0.6, None)),
  (("ShearX", 0.6, 0.5 / 3), ("Equalize", 1, None)),
  (("Color", 0.4, 0), ("Equalize", 0.6, None)),
]
TABLE += [TABLE[i - 1] for i in (5, 2, 14, 15, 3)]


def outcomes(op, probability, value):
  """The distribution of one slot of a sub-policy: {edit: probability}."""
  if op in ("Color", "Contrast", "Sharpness"):
    drawn = signed(op, value, 1)
  elif op in ("Rotate", "ShearX"):
    drawn = signed(op, value)
  else:
    drawn = [known(op, value)]
  result = Counter({known("Identity"): 1 - probability})
  for edit in drawn:
    result[edit] += probability / len(drawn)
  return result


def assert_follows(drawn, expected):
  """Chi-squared at five standard deviations, and nothing outside `expected`."""
  counts, n = Counter(drawn), len(drawn)
  expected = {key: p for key, p in expected.items() if p > 0}
  assert set(counts) <= set(expected)
  assert math.isclose(sum(expected.values()), 1)
  chi = sum((counts[key] - n * p) ** 2 / (n * p) for key, p in expected.items())
  freedom = len(expected) - 1
  assert chi < freedom + 5 * math.sqrt(2 * freedom)


def test_randaugment_draws_14_ops_equally_often_with_balanced_signs():
  first, second = draw(policies.randaugment())
  expected = {edit: 1 / 14 / len(signs) for signs in OUTCOMES.values() for edit in signs}
  assert len(expected) == 23
  assert_follows(first, expected)
  assert_follows(second, expected)
  pairs = {(a, b): p * q for (a, p), (b, q) in itertools.product(expected.items(), repeat=2)}
  assert_follows(list(zip(first, second, strict=True)), pairs)  # independent, and with return


def test_autoaugment_draws_the_25_sub_policies_of_the_table():
  assert len(TABLE) == len(policies.IMAGENET) == 25
  expected = Counter()
  for one, two in TABLE:
    for (a, p), (b, q) in itertools.product(outcomes(*one).items(), outcomes(*two).items()):
      expected[a, b] += p * q / 25
  assert_follows(list(zip(*draw(policies.autoaugment()), strict=True)), expected)


def test_sub_policy_13_never_applies_its_first_op(monkeypatch):
  monkeypatch.setattr(policies, "IMAGENET", policies.IMAGENET[12:13])
  first, second = draw(policies.autoaugment(), 2000)
  assert set(first) == {known("Identity")}
  assert_follows(second, {known("Equalize"): 0.8, known("Identity"): 0.2})


def test_a_policy_applies_what_it_draws_in_sequence():
  image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
  keys = jax.random.split(jax.random.key(0), 64)
  seen = jax.jit(jax.vmap(policies.randaugment(), (0, None)))(keys, image)
  names = {edit: op for op, signs in OUTCOMES.items() for edit in signs}
  apply = jax.jit(edits.apply)
  both = zip(*draw(policies.randaugment(), 64), strict=True)
  for drawn, ours in zip(both, seen, strict=True):
    expected = image
    for edit in drawn:
      sign = OUTCOMES[names[edit]].index(edit)
      level = policies.magnitude(names[edit], 0.3, 1 - 2 * sign, SIZE, SIZE)
      expected = apply(expected, edits.edit(names[edit], level, SIZE, SIZE))
    np.testing.assert_array_equal(ours, expected)


def test_translations_go_by_the_size():
  assert policies.magnitude("TranslateX", 0.3, 1, 224, 224) == 30
  assert policies.magnitude("TranslateX", 0.3, -1, 224, 32) == -4
  assert policies.magnitude("TranslateY", 0.3, -1, 224, 32) == -30
  for name in ("TranslateX", "TranslateY"):  # 150 / 331 of it at most
    assert policies.magnitude(name, 1, 1, 1000, 1000) == 453


def test_thresholds_of_solarize_are_whole_where_the_table_has_them_whole():
  """255 (1 - 3/9) is 170 exactly: one bit more and level 170 would be inverted no longer."""
  level = policies.magnitude("Solarize", 3 / 9, 1, SIZE, SIZE)
  assert edits.edit("Solarize", level, SIZE, SIZE).threshold == 170
