"""Four methods on digits with equal views, OKDPH in two variants: minutes on a laptop.

    okdph sweep digits --root=runs/sweep --jobs=2

Settings: `configs/digits.py`, ours. Expected: every best single network above 0.95.
"""

SEEDS = 3


def get_sweep():
  return {
    "base": {"config": "digits:base,resnet8"},
    "dml": {"config": "digits:dml,resnet8"},
    "kdcl": {"config": "digits:kdcl,resnet8"},
    "okdph": {"config": "digits:okdph,resnet8"},
    "okdph-detached": {"config": "digits:okdph,resnet8", "method.hybrid_gradient": False},
  }
