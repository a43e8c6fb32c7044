"""The host's part of streaming: images per second and core, and what it is of a step.

    python -m benchmarks.input_pipeline [--views=3 --batch=256 --images=1024 --step_ms=MS]

Makes JPEGs of ImageNet's size (500x375, about 100 kB, cut from scikit-learn's two
photographs) and streams them as training does: read, decode once, one random-resized crop
of 224 per view, stack, send to the device. `--step_ms` is the time of a training step on a
batch, e.g. from `benchmarks.train_step`; the share says how much of it the host needs, and
below 1 the device never waits. A core's rate counts its busy seconds, so that it holds on
a machine that others use too. The last line is JSON.
"""

import argparse
import json
import pathlib
import resource
import tempfile
import time

import ml_collections
import numpy as np
from PIL import Image

from okdph_jax import data
from okdph_jax.runtime import host

SIZE = 500, 375


def make(folder, count):
  """Writes `count` JPEGs under train/ and two under test/; the mean size in bytes."""
  from sklearn.datasets import load_sample_images

  photographs = [Image.fromarray(x) for x in load_sample_images().images]
  generator, sizes = np.random.default_rng(0), []
  for i in range(count + 2):
    photograph = photographs[i % 2]
    left = int(generator.integers(photograph.width - SIZE[0] + 1))
    top = int(generator.integers(photograph.height - SIZE[1] + 1))
    part = folder / ("train" if i < count else "test") / f"class_{i % 2}"
    part.mkdir(parents=True, exist_ok=True)
    path = part / f"{i:06d}.jpg"
    photograph.crop((left, top, left + SIZE[0], top + SIZE[1])).save(path, quality=96)
    sizes.append(path.stat().st_size)
  return np.mean(sizes)


def measure(folder, views, batch_size, epochs=3):
  """Images per second, per busy core second, and the growth of memory after an epoch in MB."""
  options = dict(name="folder", dir=str(folder), train="train", test="test", fraction=1.0)
  options |= dict(replacement=False, validation=0, image_size=224, memory_limit=0)
  dataset = data.load(ml_collections.ConfigDict(dict(data=options)))
  batch = dataset.train.batches(seed=0, batch_size=batch_size, views=views)
  steps = data.epoch_steps(len(dataset.train), batch_size)
  for step in range(steps):  # the first epoch warms up
    batch(step)
  before = peak_mb()
  wall, busy = time.perf_counter(), time.process_time()
  for step in range(steps, epochs * steps):
    batch(step).image.block_until_ready()
  wall, busy = time.perf_counter() - wall, time.process_time() - busy
  count = (epochs - 1) * len(dataset.train)
  return count / wall, count / busy, peak_mb() - before


def peak_mb():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--views", type=int, default=3, help="random crops of each image")
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--images", type=int, default=1024, help="JPEGs to make")
  parser.add_argument("--step_ms", type=float, help="milliseconds of a training step")
  args = parser.parse_args()
  host.configure()
  with tempfile.TemporaryDirectory() as folder:
    size = make(pathlib.Path(folder), args.images)
    print(
      f"{args.images} JPEGs of {SIZE[0]}x{SIZE[1]}, {size / 1e3:.0f} kB, {args.views} views"
    )
    rate, per_core, growth = measure(pathlib.Path(folder), args.views, args.batch)
  cores = host.cores()
  host_ms = 1e3 * args.batch / (per_core * cores)
  print(f"{rate:.0f} images/s on {cores} cores; {per_core:.0f} images/s per busy core")
  print(f"memory grew by {growth:.0f} MB after the first epoch")
  print(f"a batch of {args.batch} takes {host_ms:.0f} ms of all cores: hidden by longer steps")
  result = {
    "images_per_second": rate,
    "images_per_second_per_core": per_core,
    "host_ms_per_batch": host_ms,
    "share_of_step": host_ms / args.step_ms if args.step_ms else None,
  }
  if args.step_ms:
    print(f"that is {result['share_of_step']:.2f} of a step of {args.step_ms:.0f} ms")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
