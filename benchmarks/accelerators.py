"""What a training step needs on TPUs and GPUs that are not here: compiled, and not run.

    python -m benchmarks.accelerators tpu:v5e:2x4 gpu:h100:8 [--network=resnet32 --batch=128]

TPU targets need `pip install "jax[tpu]"` and name a topology: "tpu:v5e:4x4" is 16 chips. GPU
targets need `pip install "jax[cuda12]"`: "gpu:h100:8" is one machine of 8, "gpu:h100:4x8" are
four. The step is that of `okdph train`, OKDPH with `--students` on `--batch` images in all,
with or without (`--views=given`) views; --compute and --batch_norm_images are a config's.
The target's own compiler compiles it, one target after another. The table says, per chip:

  compile      seconds, of one core
  memory       arguments, results and temporaries
  GFLOP, GB    what the program computes, and reads and writes in the chip's memory
  padding      bytes of the program's arrays in the chip's tiles, relative to their content
  convolutions forward, of the gradient of the image and of that of the kernel; grouped ones
  collectives  how many of each kind, and of how many bytes in all
  roofline     the larger of GFLOP and GB at the chip's published rates, then the collectives at
               the rate of its links and an assumed latency (see `CHIPS`), which nothing hides
  estimate     what the TPU's compiler expects of all operations but collectives

Compiling takes minutes, and nothing else is measured: a real step is slower than its roofline.
The last line is JSON.
"""

import argparse
import collections
import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from typing import NamedTuple

from tabulate import tabulate

from benchmarks.train_step import VIEWS, known, okdph


class Chip(NamedTuple):
  """Published rates, and what is assumed of the latency of the links."""

  flops: float  # per second, of products of float32 numbers as the compiler computes them
  memory: float  # bytes per second
  link: float  # bytes per second from a chip to the others of its TPU slice or GPU machine
  far: float = 0.0  # bytes per second from a GPU to other machines
  clock: float = 0.0  # cycles per second, in which a TPU's compiler estimates


# Products of float32 numbers take bfloat16 on TPUs and TF32 on GPUs, by JAX's default.
CHIPS = {
  "v5e": Chip(197e12, 819e9, 200e9, clock=1.5e9),  # cloud.google.com/tpu/docs/v5e
  "v5p": Chip(459e12, 2765e9, 600e9, clock=1.75e9),  # .../v5p
  "v6e": Chip(918e12, 1638e9, 400e9, clock=1.75e9),  # .../v6e
  "h100": Chip(495e12, 3350e9, 450e9, far=50e9),  # NVIDIA's data sheet of the H100 SXM
}
HOP = 1e-6  # seconds of a hop of a TPU's torus
NVLINK, NETWORK = 10e-6, 10e-6  # of a small all-reduce in a machine, and each time they double
RING = 16  # chips along an axis of a v5e or v6e slice that close it to a ring

STREAMED = ("plain", "randaugment", "autoaugment")  # of images that were cropped for each view

COLLECTIVES = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2} | {
  f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (32, 64)
}
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\](?:\{{([\d,]*)(?::T\((\d+),(\d+)\))?)?")
KINDS = {  # by a TPU's dimensions [batch, feature, in, out], and by the names of cuDNN
  "forward": ("b01f_01io->b01f", "convForward", "convBiasActivationForward"),
  "image gradient": ("b01f_01oi->b01f", "convBackwardInput"),
  "kernel gradient": ("f01b_i01o->01bf", "convBackwardFilter"),
}

# What XLA asks the driver of a GPU.
H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: %d }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Target(NamedTuple):
  """What to compile for: "tpu:v5e:2x4" or "gpu:h100:4x8"."""

  platform: str
  chip: str
  grid: tuple[int, ...]  # of a TPU's chips; (machines, GPUs) or (GPUs,)

  @classmethod
  def parse(cls, text):
    platform, chip, grid = [*text.split(":"), "", ""][:3]
    sizes = tuple(int(n) for n in grid.split("x") if n.isdigit() and int(n))
    platforms = {"v5e": "tpu", "v5p": "tpu", "v6e": "tpu", "h100": "gpu"}
    if platforms.get(chip) != platform or "x".join(map(str, sizes)) != grid or not grid:
      raise argparse.ArgumentTypeError(f"{text!r} is not like tpu:v5e:2x4 or gpu:h100:8")
    return cls(platform, chip, sizes)

  def __str__(self):
    return f"{self.platform}:{self.chip}:{'x'.join(map(str, self.grid))}"

  def devices(self):
    """Those of JAX's description of the topology; none of them is there."""
    import jax
    from jax.experimental import topologies

    jax.devices()  # else JAX does not know the CUDA plugin
    if self.platform == "tpu":
      alone = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(self.grid) == 1 else {}
      name = f"{self.chip}:{'x'.join(map(str, self.grid))}"
      return topologies.get_topology_desc(platform="tpu", topology_name=name, **alone).devices
    machines, gpus = (1, *self.grid)[-2:]
    return topologies.get_topology_desc(
      platform="cuda",
      topology_name=self.chip,
      target_config=H100 % int(version("nvidia-cudnn-cu12").split(".")[1]),
      topology=f"1x{machines}x{gpus}",
    ).devices

  def seconds(self, sizes):
    """Of all-reduces of these bytes, one after the other, each over all chips."""
    chip, chips = CHIPS[self.chip], math.prod(self.grid)
    if chips == 1:
      return 0.0
    if self.platform == "tpu":
      hops = sum(n // 2 if n >= RING else n - 1 for n in self.grid)
      rate, latency = chip.link, HOP * hops
    else:
      machines = (1, *self.grid)[-2]
      rate = chip.link if machines == 1 else chip.far
      latency = NVLINK + NETWORK * math.log2(machines)
    return sum(latency + 2 * (chips - 1) / chips * size / rate for size in sizes)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("targets", nargs="+", type=Target.parse, help="tpu:v5e:2x4, gpu:h100:8")
  parser.add_argument("--network", default="resnet32")
  parser.add_argument("--students", type=int, default=2)
  parser.add_argument("--batch", type=int, default=128, help="images per step, on all chips")
  parser.add_argument("--size", type=int, default=32, help="pixels along a side; 224: ImageNet")
  parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--batch_norm_images", type=int)
  parser.add_argument("--views", choices=("computed", "given"), default="computed")
  parser.add_argument("--hlo", help="a folder to write the compiled programs to")
  parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    print(json.dumps(measured(args.targets[0], args)))
    return
  known(parser, args.network)
  found = []
  options = [a for a in sys.argv[1:] if a not in map(str, args.targets)]
  environment = os.environ | {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    # Without a GPU no kernel can be timed: which algorithm cuDNN takes is left open.
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0",
  }
  for target in args.targets:  # a process for each: it gives its memory back
    command = [sys.executable, "-m", "benchmarks.accelerators", "--worker", *options]
    done = subprocess.run(
      [*command, str(target)], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
      raise SystemExit(f"{target} was not compiled; see above")
    found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{target} is compiled", flush=True)
  print(table(found))
  print(json.dumps(found))


def table(found):
  rows = [
    (
      one["target"],
      one["images_per_chip"],
      f"{one['compile_s']:.0f}",
      f"{one['memory_mb']:,.0f}",
      f"{one['gflop']:,.1f}",
      f"{one['gb']:,.2f}",
      f"{one['padding']:.1f}" if one["padding"] else "-",
      "/".join(str(one["convolutions"].get(kind, 0)) for kind in KINDS),
      one["grouped"],
      ", ".join(f"{n} {kind}" for kind, n in one["collectives"].items()) or "none",
      f"{one['collective_mb']:.1f}",
      f"{one['compute_ms']:.2f}",
      f"{one['memory_ms']:.2f}",
      f"{one['collective_ms']:.2f}",
      f"{one['roofline_ms']:.2f}",
      f"{one['estimate_ms']:.2f}" if one["estimate_ms"] else "-",
    )
    for one in found
  ]
  columns = ("target", "images/chip", "compile s", "memory MB", "GFLOP", "GB", "padding")
  columns += ("convolutions", "grouped", "collectives", "MB")
  columns += ("FLOP ms", "GB ms", "links ms", "roofline ms", "estimate ms")
  return tabulate(rows, columns, disable_numparse=True)


def measured(target, args):
  """Compiles the step for the target: what the program says of itself."""
  os.nice(19)
  traced, flops = step(target, args)
  platform = {"tpu": "tpu", "gpu": "cuda"}[target.platform]
  lowered = traced.lower(lowering_platforms=(platform,))
  began = time.process_time()
  compiled = lowered.compile()
  seconds = time.process_time() - began
  text = compiled.as_text()
  if args.hlo:
    os.makedirs(args.hlo, exist_ok=True)
    name = f"{str(target).replace(':', '-')}-{args.network}-{args.batch}.hlo"
    with open(os.path.join(args.hlo, name), "w") as file:
      file.write(text)
  chip, memory, sizes = CHIPS[target.chip], compiled.memory_analysis(), collectives(text)
  # Not for GPUs: then what is asked for, and all results and operands.
  own = {"flops": flops / math.prod(target.grid), "bytes accessed": traffic(text)}
  cost = own | (compiled.cost_analysis() or {})
  compute, memory_s = cost["flops"] / chip.flops, cost["bytes accessed"] / chip.memory
  links = target.seconds([size for each in sizes.values() for size in each])
  kinds, grouped = convolutions(text)
  held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  held += memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    "target": str(target),
    "network": args.network,
    "batch": args.batch,
    "images_per_chip": math.ceil(args.batch / math.prod(target.grid)),
    "compile_s": seconds,
    "memory_mb": held / 1e6,
    "gflop": cost["flops"] / 1e9,
    "gb": cost["bytes accessed"] / 1e9,
    "padding": padding(text),
    "convolutions": kinds,
    "grouped": grouped,
    "collectives": {kind: len(each) for kind, each in sizes.items()},
    "collective_mb": sum(map(sum, sizes.values())) / 1e6,
    "compute_ms": 1e3 * compute,
    "memory_ms": 1e3 * memory_s,
    "collective_ms": 1e3 * links,
    "roofline_ms": 1e3 * (max(compute, memory_s) + links),
    "estimate_ms": 1e3 * cycles(text) / chip.clock if chip.clock else None,
  }


def step(target, args):
  """`train_step` traced for the target's chips, which share the batch; its FLOPs in all."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

  from okdph_jax import views
  from okdph_jax.core import Batch
  from okdph_jax.data import batches
  from okdph_jax.methods.protocol import trained_as
  from okdph_jax.nn.execution import Execution
  from okdph_jax.training.compile import flops_of
  from okdph_jax.training.feed import as_they_are
  from okdph_jax.training.step import initial_state, train_step

  mesh = Mesh(np.array(target.devices()), ("data",), axis_types=(AxisType.Auto,))
  imagenet = args.size == 224
  method, tx = okdph(args.network, args.students, classes=1000 if imagenet else 10)
  method = trained_as(method, Execution(args.compute, args.batch_norm_images))
  specs = STREAMED if imagenet else VIEWS  # a stream has cropped for every view
  specs = [specs[v % len(specs)] for v in range(method.views)]
  parts = method, tx, views.make(specs, (0.5,) * 3, (0.25,) * 3)

  def shape(tree, axis=None):
    place = NamedSharding(mesh, PartitionSpec())
    if axis is not None:
      place = batches.sharding(mesh, args.batch, axis=axis)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

  crops = (method.views,) if imagenet or args.views == "given" else ()
  image = jax.ShapeDtypeStruct((*crops, args.batch, args.size, args.size, 3), jnp.uint8)
  if args.views == "given":
    parts, image = (method, tx, as_they_are), image.update(dtype=jnp.float32)
  label = jax.ShapeDtypeStruct((args.batch,), jnp.int32)
  batch = Batch(shape(image, len(crops)), shape(label, 0))
  key = shape(jax.eval_shape(lambda: jax.random.key(0)))
  state = shape(jax.eval_shape(functools.partial(initial_state, *parts), batch, key))
  function = functools.partial(train_step, *parts)
  jitted = jax.jit(function, donate_argnums=0, out_shardings=key.sharding)
  traced = jitted.trace(state, batch, key)
  return traced, flops_of(traced, function, state, batch, key)


# Reading a compiled program.


def collectives(text):
  """{kind: [bytes of each]} of a compiled program."""
  found = {}
  for line in text.splitlines():
    match = re.match(rf"\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
    if match:
      shape, kind, start = match.groups()
      size = sum(content for content, _ in arrays(shape))
      twice = start and shape.startswith("((")  # (operands, results)
      found.setdefault(kind, []).append(size // 2 if twice else size)
  return found


def arrays(text):
  """(bytes of the content, bytes in the chip's tiles) of the arrays that a text names."""
  for kind, sizes, layout, rows, columns in ARRAY.findall(text):
    shape = [int(n) for n in sizes.split(",") if n]
    content = tiled = math.prod(shape) * BYTES[kind]
    if rows and len(shape) > 1:
      minor, next_minor, *rest = [shape[int(axis)] for axis in layout.split(",")]
      padded = [
        -(-minor // int(columns)) * int(columns),
        -(-next_minor // int(rows)) * int(rows),
      ]
      tiled = math.prod(padded + rest) * BYTES[kind]
    yield content, tiled


def padding(text):
  """Bytes in tiles / bytes of content of what the operations give; None without tiles."""
  entry = computations(text)[ENTRY]
  results = [line.partition(" = ")[2].split(" ", 1)[0] for line in entry if " = " in line]
  found = [pair for result in results for pair in arrays(result)]
  content, tiled = map(sum, zip(*found, strict=True))
  return tiled / content if tiled != content else None


def traffic(text):
  """Bytes of the results and operands of all operations but those that move nothing."""
  sizes, total = {}, 0
  for line in computations(text)[ENTRY]:
    match = re.match(r"\s*(?:ROOT )?%?(\S+) = (.+?) ([\w-]+)\((.*?)\)", line)
    if match:
      name, shape, operation, operands = match.groups()
      sizes[name] = sum(content for content, _ in arrays(shape))
      if operation not in ("parameter", "constant", "tuple", "get-tuple-element", "bitcast"):
        read = [sizes.get(operand.strip(" %"), 0) for operand in operands.split(",")]
        total += sizes[name] + sum(read)
  return total


def convolutions(text):
  """({kind: how many}, how many of them are grouped)."""
  kinds, grouped = collections.Counter(), 0
  for line in text.splitlines():
    if " convolution(" in line or '"__cudnn$conv' in line:
      name = re.search(r'dim_labels=([^,"\s]+)', line)
      name = re.search(r'"__cudnn\$(\w+)"', line) or name
      kinds[next((kind for kind in KINDS if name and name[1] in KINDS[kind]), "other")] += 1
      groups = re.findall(r"(?:feature|batch)_group_count=(\d+)", line)
      grouped += any(int(n) > 1 for n in groups)
  return dict(kinds), grouped


ENTRY = "entry"


def computations(text):
  """{name: lines} of a program; `ENTRY` is where it begins."""
  found, lines = {}, []
  for line in text.splitlines():
    if match := re.match(r"(ENTRY )?%?(\S+) .*\{$", line):
      lines = found.setdefault(ENTRY if match[1] else match[2], [])
    else:
      lines.append(line)
  return found


def cycles(text):
  """What a TPU's compiler expects of all operations but conditional ones, which are rare."""
  found = computations(text)

  def total(name):
    own = sum(map(int, re.findall(r'estimated_cycles":"(\d+)"', "\n".join(found[name]))))
    for line in found[name]:
      if match := re.search(r" while\(.*condition=%?([\w.]+), body=%?([\w.]+)", line):
        limits = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(found[match[1]]))
        own += max(map(int, limits), default=1) * total(match[2])
    return own

  return total(ENTRY)


if __name__ == "__main__":
  main()
