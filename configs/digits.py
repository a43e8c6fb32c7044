"""scikit-learn's handwritten digits: the whole way in a minute on a laptop, no network.

    make demo
    python -m okdph_jax.main --config=configs/digits.py --workdir=DIR

The argument is METHOD,NETWORK,STUDENTS, okdph,resnet8,2 by default. Images are 8x8x1 and a
mirrored digit is another digit, so the views are ours: a shift by a pixel, a rotation, a hole.
Methods other than okdph draw one of the three for each network and image, so that all methods
are compared on equal views.
Expected: best single network above 0.97.
"""

from okdph_jax.experiment import paper

VIEWS = ("crop(1)", "crop(1)|rotate(15)", "crop(1)|cutout(3)")
ARGUMENT = dict(method="okdph", network="resnet8", students=None)


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  if options["method"] == "okdph":
    options["fuse_every"] = "1 epoch"  # 23 steps
  config = paper.recipe("digits", **options)
  if options["method"] == "okdph":  # one for each student, and the hybrid's
    config.views = tuple(VIEWS[i % len(VIEWS)] for i in range(len(config.views)))
  else:  # the same for all methods: each network draws one of them for each image
    config.views = (f"any({', '.join(VIEWS)})",)
  config.batch_size = 64
  config.learning_rate = 0.1
  config.epochs = 20
  config.eval_every_epochs = 2
  return config
