"""The paper's Table 4: how sensitive OKDPH is to its hyper-parameters.

    okdph sweep table4 --root=runs/table4 --only=entry=omega*

CIFAR-10, ResNet32, two students. One hyper-parameter is changed at a time: omega, beta, gamma,
the interval Delta of fusion (`fuse_every`), and the number M of students (from Table S3); the
others are the supplement's Table 6. `okdph` is the cell that all columns share.
"""

from okdph_jax.report.paper import TABLE_4

SEEDS = 5
CELL = {"omega": 0.8, "beta": 0.8, "gamma": 0.5, "fuse_every": "1 epoch"}  # Table 6


def get_sweep():
  entries = {"okdph": {"config": "cifar10:okdph,resnet32"}}
  for option, column in TABLE_4.items():
    for value in column:
      if value != CELL[option]:
        name = f"{option}{value}".replace(" ", "_")
        entries[name] = entries["okdph"] | {f"method.{option}": value}
  for students in (3, 4):
    entries[f"students{students}"] = {"config": f"cifar10:okdph,resnet32,{students}"}
  return entries
