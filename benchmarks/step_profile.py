"""Where the time of a training step goes, by kind of operation, on a CPU.

    python -m benchmarks.step_profile [--network=resnet32 --students=2 --batch=128]

Three steps as `okdph train` makes them are traced by `jax.profiler`. A row is a kind of
operation: its time per step, summed over all threads, and its share of what is computed.
Operations that XLA has fused count as the last of them. Threads also wait for each other where
they add something over the devices, which is not computing. Run it while nothing else does.
"""

import collections
import glob
import re
import tempfile

from tabulate import tabulate

from benchmarks.train_step import (
  compiled,
  configure_jax,
  known,
  problem,
  problem_parser,
  stepping,
)
from okdph_jax.runtime import memory

STEPS = 3
WAITING = "adding over the devices, and waiting for each other"
CONTAINERS = {"call", "while", "conditional"}  # whose operations have rows of their own
SUMS = r"BatchNorm_\d+/(\S*/)?(custom_partitioning|onednn_channel_sums|reduce_sum)"
PRODUCTS = r"(Conv|Dense)_\d+/(\S*/)?dot_general"
KINDS = [  # (name, what is found in the operation's line in the compiled program)
  ("convolutions: output", r"convolution=\"\(\\'out\\'"),
  ("convolutions: gradient of the image", r"convolution=\"\(\\'lhs\\'"),
  ("convolutions: gradient of the kernel", r"convolution=\"\(\\'rhs\\'"),
  (WAITING, "all-reduce"),
  ("batch normalisation: sums of the gradient", rf"transpose\(jvp.*{SUMS}"),
  ("batch normalisation: sums", SUMS),
  ("batch normalisation: gradient", r"transpose\(jvp.*BatchNorm_\d+"),
  ("dense layers, convolutions that XLA computes", PRODUCTS),
  ("gradient of ReLU, residual sums, concatenations", r"transpose\(jvp\((vmap\()?Net"),
  ("normalising, ReLU, residual sums, concatenations", r"jvp\((vmap\()?Net"),
  ("views", r"jit\(steps\)/views"),
  ("update of the parameters, fusion", r"jit\(steps\)/update"),
  ("losses, hybrid, and the rest", ""),
]


def main():
  parser = problem_parser(__doc__)
  args = parser.parse_args()
  memory.keep_large_blocks()
  known(parser, args.network)
  configure_jax(args)
  milliseconds = collections.Counter()
  for line, own in traced(args):
    milliseconds[kind(line)] += own
  waiting = milliseconds.pop(WAITING, 0.0)
  total = sum(milliseconds.values())
  rows = [
    (name, f"{own:.0f}", f"{own / total:.1%}") for name, own in milliseconds.most_common()
  ]
  rows += [("all of these", f"{total:.0f}", "100%"), (WAITING, f"{waiting:.0f}", "")]
  print(f"{args.network}, {args.students} students and the hybrid, batch {args.batch}")
  print(tabulate(rows, ("", "ms of all threads", ""), disable_numparse=True))


def traced(args):
  """(its line in the compiled program, milliseconds per step) of each operation of a step."""
  import jax

  method, tx, augment, batch, key = problem(args)
  built = compiled(method, tx, augment, batch, key)
  run = stepping(built.state, built.advance, batch, key)
  program = built.advance.func.program(*built.advance.args, built.state, (batch,), key)
  lines = dict(
    re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", program.as_text(), re.MULTILINE)
  )
  for _ in range(STEPS):
    run()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(STEPS):
        run()
    (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    profile = jax.profiler.ProfileData.from_file(file)
  times = collections.Counter()
  for plane in profile.planes:
    for thread in plane.lines:
      for event in thread.events:
        about = dict(event.stats)
        if about.get("hlo_module") == "jit_steps":
          times[about["hlo_op"]] += event.duration_ns / 1e6 / STEPS
  return [(lines[name], own) for name, own in times.items() if not container(lines[name])]


def container(line):
  return re.search(r" ([\w\-]+)\(", line).group(1) in CONTAINERS


def kind(line):
  """What kind of operation a line of the compiled program is, by its opcode and its name."""
  return next(name for name, pattern in KINDS if re.search(pattern, line))


if __name__ == "__main__":
  main()
