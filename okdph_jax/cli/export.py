"""`okdph export`: a trained network as files for other runtimes."""

from okdph_jax.cli.arguments import Parser, command, split_options

DESCRIPTION = """\
Writes a trained network for other runtimes: StableHLO (JAX on any device), ONNX, TFLite, its
weights as safetensors, and a description, model.json. The files take raw pixels. Each one is
opened by its own runtime and compared with the checkpoint on images of the test split; if one
differs, nothing is written.

  okdph export --workdir=runs/digits
  okdph export --workdir=runs/cifar10 --reader=hybrid --int8 --out=hybrid

Needs `pip install '.[export]'` in a checkout, and the run's data; if they have moved, add
--data.dir=DIR. `okdph predict` uses the exported network.
"""


@command
def main(arguments: list[str]) -> int:
  _, changes, rest = split_options(arguments, "data")
  parser = Parser("export", DESCRIPTION)
  parser.add_argument("--workdir", metavar="DIR", help="run directory")
  parser.add_argument("--reader", help="which network (the one that okdph_jax.load takes)")
  parser.add_argument("--which", help="checkpoint: last, best-validation or best-test")
  parser.add_argument("--network", help="class of the run's own network, package.module:Name")
  parser.add_argument("--out", metavar="DIR", help="output directory (WORKDIR/export)")
  parser.add_argument(
    "--formats",
    default="stablehlo,onnx,tflite",
    help="files to write besides the weights (%(default)s)",
  )
  parser.add_argument(
    "--int8", action="store_true", help="also write ONNX and TFLite in 8 bits"
  )
  parser.add_argument(
    "--images", type=int, default=256, help="number of images to compare on (%(default)s)"
  )
  flags = parser.parse(rest)
  if not flags.workdir:
    raise ValueError("--workdir=DIR is needed: okdph export --workdir=runs/digits")
  if flags.images < 1:
    raise ValueError(f"--images={flags.images}: at least 1 is needed")

  from tabulate import tabulate

  from okdph_jax.experiment.config import changed_data
  from okdph_jax.export.folder import export

  about, out = export(
    flags.workdir,
    flags.out,
    reader=flags.reader,
    which=flags.which,
    network=flags.network,
    formats=[name for name in flags.formats.split(",") if name],
    int8=flags.int8,
    images=flags.images,
    data=changed_data(changes),
  )
  print(f"{about['name']}: {len(about['classes'])} classes; {accuracy(about)}")
  compared = about["compared"]
  print(f"compared with the checkpoint on {compared['images']} images of {compared['of']}")
  rows = [
    (entry["file"], entry["bytes"] / 2**20, entry["max_difference"], entry["agreement"])
    for entry in about["files"].values()
  ]
  headers = ("file", "MiB", "largest logit difference", "same class")
  print(tabulate(rows, headers, floatfmt=("", ".2f", ".1e", ".1%")))
  print(f"wrote {out}")
  return 0


def accuracy(about: dict) -> str:
  """The accuracies of model.json in words, with what the checkpoint was chosen on."""
  split = about["chosen_on"]
  chosen = f"the checkpoint that is best on {split}" if split else "the last checkpoint"
  known = [f"{value:.4f} on {split}" for split, value in about["accuracy"].items()]
  return f"accuracy {', '.join(known) or 'not recorded'} ({chosen})"
