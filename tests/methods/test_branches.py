"""One stem and many branches: nothing is shared by mistake, and the numbers of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from okdph_jax.methods import METHODS
from okdph_jax.methods.protocol import Context
from okdph_jax.models import build
from tests.methods import tiny

# backbone, branches, classes: independent networks, one, okddip, ffl's network, its fusion, pcl
TOTALS = {
  ("resnet32", 2, 10): (933_812, 821_290, 822_244, 821_220, 10_378, 822_510),
  ("resnet32", 3, 10): (1_400_718, 1_175_639, 1_176_558, 1_175_534, 15_178, 1_177_464),
  ("resnet32", 4, 10): (1_867_624, 1_529_988, 1_530_872, 1_529_848, 19_978, 1_532_418),
  ("resnet32", 2, 100): (None, 832_990, 833_944, 832_920, 16_228, 845_820),
  ("resnet110", 2, 10): (2_295_476, 2_020_458, 2_036_580, 2_020_196, 139_786, 2_025_326),
  ("resnet110", 2, 100): (None, 2_066_718, 2_082_840, 2_066_456, 162_916, 2_117_756),
  ("vgg16", 2, 10): (30_507_156, 22_867_546, 22_932_052, 22_866_516, 541_706, 22_876_766),
  ("vgg16", 3, 10): (45_760_734, 30_480_999, 30_544_990, 30_479_454, 809_482, 30_494_824),
  ("vgg16", 4, 10): (61_014_312, 38_094_452, 38_157_928, 38_092_392, 1_077_258, 38_112_882),
  ("vgg16", 2, 100): (None, 22_959_886, 23_024_392, 22_958_856, 587_876, 23_061_356),
  ("densenet40_12", 2, 10): (352_244, 236_522, 240_620, 236_396, 39_346, 239_046),
  ("densenet40_12", 2, 100): (None, 260_462, 264_560, 260_336, 51_316, 286_836),
  ("wrn20_8", 2, 10): (13_696_180, 12_066_666, 12_082_788, 12_066_404, 139_786, 12_071_534),
  ("wrn20_8", 2, 100): (None, 12_112_926, 12_129_048, 12_112_664, 162_916, 12_163_964),
}


@pytest.mark.parametrize("case", TOTALS, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_totals(case):
  network, branches, classes = case
  context = Context(build(network, classes), classes, epoch_steps=391, epochs=300)

  def parameters(name):
    method = METHODS[name](context, students=branches)
    views = jax.ShapeDtypeStruct((method.views, 2, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(method.init, jax.random.key(0), views).params

    def size(tree):
      return sum(leaf.size for leaf in jax.tree.leaves(tree))

    fusion = size(params["shared"].get("fusion", {}))
    return (size(params) - fusion, fusion) if fusion else (size(params),)

  base, *rest = TOTALS[case]
  assert [n for name in ("one", "okddip", "ffl", "pcl") for n in parameters(name)] == rest
  if base:
    assert parameters("base") == (base,)


@pytest.mark.parametrize("name", ["one", "okddip", "ffl", "pcl"])
def test_branches_share_nothing(name):
  """A loss of one branch alone moves that branch alone, and starts differ."""
  method = METHODS[name](tiny.context(), students=3)
  views = tiny.augment(method.views)(None, tiny.batch().image)
  learner = tiny.jit(method.init)(jax.random.key(0), views)
  for leaf in jax.tree.leaves(learner.params["students"]):
    if leaf.ndim > 2:  # kernels; scales and shifts start equal
      assert not np.array_equal(leaf[0], leaf[1]) and not np.array_equal(leaf[1], leaf[2])

  @tiny.jit
  def gradient(params):
    def loss(params):
      readers = method.predict(learner.replace(params=params), views[0])
      return (readers["student_1"] ** 2).sum()

    return jax.grad(loss)(params)

  grads = gradient(learner.params)
  for leaf in jax.tree.leaves(grads["students"]):
    assert leaf[1].any() and not leaf[0].any() and not leaf[2].any()
  assert all(leaf.any() for leaf in jax.tree.leaves(grads["shared"]["stem"]))
