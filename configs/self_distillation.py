"""Self-distillation: a network is taught by the one of its kind that was trained before it.

    python -m okdph_jax.main --config=configs/self_distillation.py:resnet32 --workdir=DIR

The argument is NETWORK,DATASET,GENERATIONS, resnet32,cifar10,3 by default. Generation k is a
run of its own in DIR/generation_k, from a seed that follows from config.seed and k; generation
0 learns from labels alone, or from --config.teacher=DIR. Born-Again Networks (Furlanello et
al., ICML 2018, arXiv:1805.04770) have T = 1. The weights a = 1 - b and T are
--config.method.task_weight, .distill_weight and .temperature: b = 1 is the teacher alone;
--config.method.targets=hard gives its decisions. The rest is the recipe of
`configs/cifar10.py`.
"""

from okdph_jax.experiment import paper

ARGUMENT = dict(network="resnet32", dataset="cifar10", generations=3)


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  config = paper.recipe(
    options["dataset"],
    "kd",
    options["network"],
    task_weight=0.5,
    distill_weight=0.5,
    temperature=1.0,
  )
  config.generations = options["generations"]
  return config
