"""ImageNet, the paper's Table 2.

    python -m okdph_jax.main --config=configs/imagenet.py --workdir=DIR

The argument is METHOD,NETWORK,STUDENTS, okdph,resnet18,2 by default; okdph has two. TFDS's
`imagenet2012` has to be prepared by hand first. Expected (paper, two students or branches):
okdph 70.66, dml 69.82, ffl 68.85, and with STUDENTS = 2 pcl 70.22, one 70.18, okddip 69.93 %.

OKDPH's hyper-parameters for ImageNet are not published: ours are the paper's most frequent
cell. Images are streamed, whatever their number, and cropped at random for each view on the
host; the views (1, 4 and 5 of the supplement) do the rest on the device and crop no more. KD's
weights are megvii-research/mdistiller's.
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(method="okdph", network="resnet18", students=None)


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  if options["method"] == "kd":
    options |= dict(task_weight=0.5, distill_weight=0.5, temperature=1.0)
  config = paper.recipe("imagenet2012", **options)
  config.data.test = "validation"
  config.data.image_size = 224
  config.data.memory_limit = 0
  config.update(paper.IMAGENET_TRAINING)  # milestones: 30, 60 and 90 of 100
  return config
