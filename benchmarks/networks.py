"""Time and memory of the OKDPH step for several networks, per multiply-accumulate.

    python -m benchmarks.networks [NETWORK ...] [--batch=32]

Two students and the hybrid, float32, views given; by default the backbones of the paper. Beside
each network resnet32 takes its turns, so that a machine that drifts drifts for both, and
PyTorch NCHW where it is installed. Times are the best of all turns; memory is the peak of the
process. The last two columns are time and memory per multiply-accumulate of the network's
convolutions, resnet32's being 1. Networks for ImageNet get images of 224 and a quarter of the
batch. Run it while nothing else does. The table is printed again with every row, so that none
is lost.
"""

import argparse

from tabulate import tabulate

from benchmarks.train_step import STEP, Worker, has_torch, known, take_turns

PAPER = ("resnet32", "resnet110", "vgg16", "densenet40_12", "wrn20_8")
IMAGENET = ("resnet18", "resnet34", "resnet50", "mobilenet_v1")
COLUMNS = ("network", "batch", "compile s", "GMAC/image", "ms", "CPU ms", "peak MB") + (
  "PyTorch ms",
  "CPU ms",
  "peak MB",
  "ratio",
  "CPU ratio",
  "time/MAC",
  "memory/MAC",
)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("networks", nargs="*", help=f"names; by default {' '.join(PAPER)}")
  parser.add_argument("--batch", type=int, default=32, help="images of 32x32 per step")
  parser.add_argument("--rounds", type=int, default=3, help="turns of each worker")
  parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
  args = parser.parse_args()
  known(parser, *args.networks)
  rows = []
  for network in args.networks or PAPER:
    rows.append(row(args, network))
    print(tabulate(rows, COLUMNS, disable_numparse=True), flush=True)


def row(args, network):
  """One row of the table: `network`, PyTorch's and resnet32 in turns."""
  options = {"students": 2, "steps": args.steps, "alone": True}
  size, batch = (224, max(args.batch // 4, 1)) if network in IMAGENET else (32, args.batch)
  own = options | {"network": network, "batch": batch, "size": size}
  workers = [
    Worker("okdph_jax", network="resnet32", batch=args.batch, **options),
    Worker("okdph_jax", **own),
  ]
  workers += [Worker("torch", **own)] * has_torch(network)
  reference, ours, *torch = (times[STEP] for times in take_turns(workers, args.rounds))
  reference_about, about = (worker.about for worker in workers[:2])
  count, reference_count = about["multiplications"], reference_about["multiplications"]
  cells = [network, batch, about["compile_s"], f"{count / batch / 1e9:.2f}"]
  cells += [f"{1e3 * ours[0]:.0f}", f"{1e3 * ours[1]:.0f}", about["peak_mb"]]
  if torch:
    wall, cpu = torch[0]
    cells += [f"{1e3 * wall:.0f}", f"{1e3 * cpu:.0f}", workers[2].about["peak_mb"]]
    cells += [f"{ours[0] / wall:.2f}", f"{ours[1] / cpu:.2f}"]
  else:
    cells += ["-"] * 5
  time = (ours[0] / count) / (reference[0] / reference_count)
  memory = (about["peak_mb"] / count) / (reference_about["peak_mb"] / reference_count)
  return [*cells, f"{time:.2f}", f"{memory:.2f}"]


if __name__ == "__main__":
  main()
