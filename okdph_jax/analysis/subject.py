"""A run under analysis: its networks over training, and images to measure them on."""

import functools
import glob
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn

from okdph_jax import data, methods, models, views
from okdph_jax.analysis.points import Images
from okdph_jax.analysis.replicates import entry_and_seed
from okdph_jax.core import Batch, Learner, Variables
from okdph_jax.data.batches import sharding as batches_sharding
from okdph_jax.methods.protocol import Context, Method
from okdph_jax.nn.students import start
from okdph_jax.run import CONFIG, Run
from okdph_jax.runtime import host
from okdph_jax.saved_config import SOURCES
from okdph_jax.status import find

if TYPE_CHECKING:
  from okdph_jax.experiment.build import Experiment


class Target(NamedTuple):
  """One network under analysis."""

  name: str
  subject: "Subject"
  reader: str
  variables: Variables
  step: int

  @property
  def net(self) -> nn.Module:
    return self.subject.net

  @property
  def group(self) -> str:
    """A figure's colour: the sweep's entry, or method and wrappers with what varies them."""
    entry, seed = entry_and_seed(self.subject.name)
    if seed:
      return entry
    config = self.subject.config
    wrappers = [wrapper["name"] for wrapper in config["wrappers"]]
    students = config["method"].get("students", 1)
    name = " + ".join([config["method"]["name"], *wrappers])
    if config["method"].get("hybrid_gradient") is False:
      name += ", detached hybrid"
    return f"{name}, {students} students" if students > 1 else name

  @property
  def test_accuracy(self) -> float | None:
    """At the run's last evaluation up to `step`, a fraction; None before the first."""
    lines = [line for line in self.subject.lines if line["step"] <= self.step]
    return lines[-1]["accuracy"]["test"][self.reader] if lines else None


class Subject:
  """A run, finished or not, and its name in tables and figures."""

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    name: str | None = None,
    network: str | None = None,
  ):
    self.run = Run(workdir)
    self.name = name or _name(Path(workdir))
    self.config = self.run.require_config()
    own = self.config["network"]
    if ":" in own and own != network:
      raise ValueError(
        f"the run in {workdir} has a user-defined network, whose code is imported only if you "
        f"name it too: --network={own}"
      )

  @functools.cached_property
  def lines(self) -> list[dict[str, Any]]:
    return self.run.lines

  @functools.cached_property
  def dataset(self) -> data.Dataset:
    return _dataset(json.dumps(self.config["data"], sort_keys=True))

  @functools.cached_property
  def net(self) -> nn.Module:
    return models.build(
      self.config["network"], self.config["data"]["classes"], self.config["network_options"]
    )

  @functools.cached_property
  def method(self) -> Method:
    """The method, to read networks from its learners; what taught them does not matter."""
    image = jax.ShapeDtypeStruct((2, *self.config["data"]["image"]), jnp.float32)
    teacher = jax.eval_shape(lambda: start(self.net, jax.random.key(0), image))
    teacher = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), teacher)
    classes, epochs = self.config["data"]["classes"], self.config["epochs"]
    context = Context(self.net, classes, self.epoch_steps, epochs, (self.net, teacher))
    return methods.assemble(context, self.config["method"], self.config["wrappers"])

  @functools.cached_property
  def epoch_steps(self) -> int:
    if not self.lines:
      raise ValueError(f"{self.run.path} has no evaluation yet; let the run reach one")
    return round(self.lines[-1]["step"] / self.lines[-1]["epoch"])

  def networks(self, which: str | None = None) -> tuple[int, dict[str, Variables]]:
    """(step, {reader: variables}) of a checkpoint, by default as `Run.chosen` says."""
    return self.run.chosen(which)[1], self.method.networks(self.run.learner(which))

  def learner(self, step: int) -> Learner:
    """The learner that was kept at a step; at 0 the start, which older runs did not keep."""
    if step not in self.run.snapshots:
      return self._start
    with ocp.StandardCheckpointer() as checkpointer:
      return Learner(**checkpointer.restore(self.run.snapshots[step].absolute()))

  def steps(self, most: int | None = None) -> list[int]:
    """The steps of the snapshots, with 0 before them where the start follows from the seed.

    most: only so many of them, evenly spaced; the last one is always there.

    Raises:
      ValueError: there are no snapshots.
    """
    steps = list(self.run.snapshots)
    if not steps:
      raise ValueError(
        f"{self.run.path} has no snapshots; train with --config.snapshots=5, one every 5 epochs"
      )
    computed = steps[0] > 0 and not self.config["init_from"]
    steps = [0] * computed + steps
    if most is None:
      return steps
    places = np.linspace(len(steps) - 1, 0, most).round().astype(int)
    return [steps[i] for i in np.unique(places)]

  def networks_at(self, step: int) -> dict[str, Variables]:
    """{reader: variables} at one of `steps`."""
    return _on_host(self.method.networks(self.learner(step)))

  def trajectory(self, most: int | None = None) -> dict[int, dict[str, Variables]]:
    """{step: {reader: variables}} of `steps(most)`."""
    return {step: self.networks_at(step) for step in self.steps(most)}

  @functools.cached_property
  def experiment(self) -> "Experiment":
    """The run's experiment, its teacher included.

    Where kd gives one of its terms the weight 0, it has 1 here, so that it has a gradient.
    """
    from ml_collections import ConfigDict

    from okdph_jax.experiment.build import build

    config = ConfigDict(self.config)
    for option in SOURCES:  # relative to the run
      if config[option]:
        config[option] = os.path.normpath(self.run.path / config[option])
    if config.method.name == "kd":
      for weight in ("task_weight", "distill_weight"):
        config.method[weight] = config.method[weight] or 1.0
    return build(config, self.dataset)

  def trained(self, step: int) -> Learner:
    """The learner at a step as `experiment` has it, with the teacher in its memory."""
    like = self.experiment.learner
    there = self.learner(step)
    if step not in self.run.snapshots and self.config["method"]["name"] == "kd":
      there = there.replace(memory=self.learner(next(iter(self.run.snapshots))).memory)
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(there))

  @functools.cached_property
  def _start(self):
    """The learner before the first step: a function of the seed."""
    key = jax.random.fold_in(jax.random.key(self.config["seed"]), 2**31 - 1)
    shape = (self.method.views, 2, *self.config["data"]["image"])
    return jax.jit(self.method.init)(key, jnp.zeros(shape, jnp.float32))

  def images(
    self, count: int, *, split: str = "train", seed: int = 0, batch: int = 250
  ) -> Images:
    """`Images` of one split, drawn by the seed without replacement, without augmentation.

    At most `count`, and a whole number of batches of at most `batch`, each of them split over
    all devices.
    """
    raw = self.raw_images(count, split=split, seed=seed, batch=batch)
    plain = views.make(("plain",), self.dataset.mean, self.dataset.std)

    @functools.partial(jax.jit, out_shardings=raw.image.sharding)
    def normalised(image):
      return jax.lax.map(lambda batch: plain(jax.random.key(0), batch)[0], image)

    return Images(normalised(raw.image), raw.label)

  def raw_images(
    self, count: int, *, split: str = "train", seed: int = 0, batch: int = 250
  ) -> Batch:
    """The same as they lie in the dataset: a `Batch` of uint8 [S, B, H, W, C].

    Images that cannot be read, which `data.corrupt="skip"` allows, are left out.
    """
    part, mesh = getattr(self.dataset, split), host.mesh()
    count = min(count, len(part))
    batches = -(-count // batch)

    def size_of(count):
      size = count // batches
      return size - size % mesh.size if size >= mesh.size else size

    size = size_of(count)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(part))[: batches * size])
    read = part[chosen].padded(size)
    whole, mask = jax.tree.map(lambda *arrays: np.concatenate(arrays), *read)
    size = size_of(mask.sum())
    stack = jax.tree.map(
      lambda x: x[mask][: batches * size].reshape(batches, size, *x.shape[1:]), whole
    )
    return jax.device_put(stack, batches_sharding(mesh, size, axis=1))


@functools.lru_cache(maxsize=8)  # one for each draw of the seeds
def _dataset(config):
  from ml_collections import ConfigDict

  return data.load(ConfigDict({"data": json.loads(config)}))


def students(networks: Iterable[str]) -> list[str]:
  """The names of the networks that descent moves: without OKDPH's hybrids and averages."""
  return [name for name in networks if re.fullmatch(r"(student|branch|peer)_\d+|leader", name)]


def subjects(
  workdirs: Iterable[str | os.PathLike[str]], network: str | None = None
) -> list[Subject]:
  """The runs in these folders. One that is no run itself, such as a sweep's or that of several
  generations, gives the finished runs below it, and so does a pattern, "runs/okdph-seed*".

  network: the dotted path of the runs' own network; one of ours needs none.

  Raises:
    ValueError: no folder fits a pattern, or none of the runs below a folder is finished.
  """
  found = []
  for workdir in map(Path, workdirs):
    alone = (workdir / CONFIG).exists()
    below = [] if alone else [run for folder in _folders(workdir) for run in find(folder)]
    finished = [run for run in below if run.result]
    if below and not finished:
      raise ValueError(
        f"none of the {len(below)} runs in {workdir} is finished; name one of them to analyse "
        f"it as it is: --workdir={below[0].path}"
      )
    if below:
      print(f"{workdir}: {len(finished)} finished runs of {len(below)}", file=sys.stderr)
    paths = sorted((run.path for run in finished), key=_naturally) or [workdir]
    found += [Subject(path, network=network) for path in paths]
    if alone and not found[-1].run.result and (lines := found[-1].lines):
      epoch = f"epoch {lines[-1]['epoch']:g} of {found[-1].config['epochs']}"
      print(f"{workdir}: not finished, taken as it is at {epoch}", file=sys.stderr)
  name_apart(found)
  return found


def name_apart(subjects: Sequence[Subject]) -> None:
  """Names runs of equal names by the folders above them too: "c10/okdph", "c100/okdph"."""
  for name, count in Counter(subject.name for subject in subjects).items():
    same = [subject for subject in subjects if subject.name == name]
    paths = [subject.run.path.resolve().parts for subject in same]
    if len(set(paths)) < count:
      raise ValueError(f"{same[0].run.path} is named twice; name every run once")
    kept = name.count("/") + 1  # folders that the name has already
    while len({path[-kept:] for path in paths}) < count:
      kept += 1
    for subject, path in zip(same, paths, strict=True):
      subject.name = "/".join(path[-kept:]) if count > 1 else name


def _folders(workdir):
  """Those that a pattern fits, or the folder itself."""
  if workdir.exists() or not glob.has_magic(str(workdir)):
    return [workdir]
  found = sorted(glob.glob(str(workdir)))
  if not found:
    raise ValueError(f"--workdir={workdir}: no folder has such a name")
  return map(Path, found)


def _name(workdir):
  """A run's name in tables: its folder's, that of a generation with the folder above."""
  path = workdir.resolve() if workdir.name in ("", "..") else workdir
  generation = re.fullmatch(r"generation_\d+", path.name)
  return f"{path.resolve().parent.name}/{path.name}" if generation else path.name


def _naturally(path):
  """A key to sort by, generation_2 before generation_10."""
  return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def targets(
  subjects: Iterable[Subject], readers: Sequence[str] = (), which: str | None = None
) -> list[Target]:
  """The single networks of the runs as `Target`s: those named in `readers`, else all.

  Raises:
    ValueError: a run has none of the readers.
  """
  found = []
  for subject in subjects:
    step, networks = subject.networks(which)
    chosen = [reader for reader in networks if not readers or reader in readers]
    if not chosen:
      raise ValueError(
        f"{subject.run.path} has no single network {' or '.join(readers)}; it has "
        f"{', '.join(networks)}"
      )
    for reader in chosen:
      name = f"{subject.name}: {reader}" if len(networks) > 1 else subject.name
      found.append(Target(name, subject, reader, _on_host(networks[reader]), step))
  return found


def _on_host(tree) -> Any:
  return jax.tree.map(np.asarray, tree)
