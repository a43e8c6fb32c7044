"""One row of the paper's Table 1: OKDPH with two ResNet32 on CIFAR-10, over several seeds.

    python examples/table1_row.py

The paper has 95.01 % (± 0.09): the mean of five runs, each counted with the highest of its 300
evaluations on the test set and of its students and their hybrid. The table that this prints
has that number, labelled as what it is, beside the last epoch's.

A run is 117,300 steps, which is a matter of hours on a GPU and of days on a laptop's CPU. Stop
the script whenever you like: run again, it resumes. The same from the command line, for one
seed:

    okdph train --config=cifar10:okdph,resnet32 --config.seed=42 --workdir=runs/table1/seed42
    okdph report runs
"""

import okdph_jax
from okdph_jax.cli import dispatch

CONFIG = "cifar10:okdph,resnet32"  # "release:okdph,resnet32": as the authors' code computes it
SEEDS = (42, 43, 44, 45, 46)
OPTIONS = []  # ("epochs", "60"): a first look; the schedule scales with it

for seed in SEEDS:
  config = okdph_jax.load_config(CONFIG, [("seed", str(seed)), *OPTIONS])
  okdph_jax.fit(config, f"runs/table1/seed{seed}")  # does nothing if the run is finished

dispatch(["report", "runs/table1"])
