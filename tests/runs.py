"""The smallest runs: two epochs of two steps on random images."""

import json

import numpy as np

SINGLE = ("student_0", "student_1", "hybrid", "center")  # okdph's readers of one network


def arrays(path, *, classes=3, size=8, seed=0):
  """Writes 32 training and 16 test images; the path."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for split, count in (("train", 32), ("test", 16)):
    labels = np.arange(count) % classes
    images = rng.integers(0, 200, (count, size, size, 1)) + 20 * labels[:, None, None, None]
    arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
  np.savez(path, **arrays)
  return path


def options(path):
  return (
    "--config.data.name=arrays",
    f"--config.data.dir={path}",
    "--config.network=tests.nets:Small",
    "--config.batch_size=16",
    "--config.epochs=2",
    "--config.eval_every_epochs=1",
  )


def evaluations(workdir):
  """The lines but for what a clock says."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    del line["seconds"], line["images_per_second"]
  return lines
