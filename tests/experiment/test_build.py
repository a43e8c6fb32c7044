"""What a config means: a teacher from another run, and the rate that a method descends with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dot, self_distillation
from okdph_jax import data, optimizers, schedules
from okdph_jax.experiment.build import build
from okdph_jax.experiment.config import check, load_config
from okdph_jax.experiment.teacher import teacher
from okdph_jax.main import main, parse
from okdph_jax.methods import assemble
from okdph_jax.nn import students
from okdph_jax.run import Run
from tests import runs
from tests.experiment.test_configs import config_of, stand_in
from tests.methods import tiny
from tests.nets import Small

OWN = "tests.nets:Small"


def told(arguments, capsys):
  """The one line that refuses."""
  assert main(arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith("okdph_jax: ") and said.count("\n") == 1, said
  return said


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run of OKDPH, the data it saw, and the options that name them."""
  folder = tmp_path_factory.mktemp("teacher")
  options = runs.options(runs.arrays(folder / "data.npz"))
  assert main(["--config=configs/digits.py", *options, f"--workdir={folder / 'run'}"]) == 0
  return folder / "run", options


def test_a_teacher_is_the_reader_that_the_run_has_measured(finished):
  run, options = finished
  config, *_ = parse(["--config=configs/digits.py:kd", *options, "--workdir=unused"])
  dataset = data.load(config)
  lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
  best = max(lines, key=lambda line: max(line["accuracy"]["test"][r] for r in runs.SINGLE))
  image = ((dataset.test.images / 255 - dataset.mean) / dataset.std).astype(np.float32)

  @jax.jit
  def nll(variables):
    logits, _ = students.run(Small(3), variables, image)
    return -jax.nn.log_softmax(logits)[np.arange(len(image)), dataset.test.labels].mean()

  for which, line in {"last": lines[-1], "best-test": best}.items():
    losses = {}
    for reader in runs.SINGLE:
      network = Run(run).network(reader, which, OWN)
      losses[reader] = float(nll(network.variables))
      assert losses[reader] == pytest.approx(line["cross_entropy"]["test"][reader], rel=1e-4)
    assert len(set(losses.values())) == len(losses)  # four networks

  # The test set chooses neither the checkpoint nor the reader.
  config.teacher = str(run)
  default = teacher(config, dataset)
  last = Run(run).network("student_0", "last", OWN)
  jax.tree.map(np.testing.assert_array_equal, default.variables, last.variables)
  config.teacher = f"{run}:center@best-test"
  best = Run(run).network("center", "best-test", OWN)
  jax.tree.map(
    np.testing.assert_array_equal, teacher(config, dataset).variables, best.variables
  )


def test_a_student_learns_from_it_or_only_measures_the_distance(finished, tmp_path):
  """What descent does not see is logged all the same: DOT's comparison of CE with KD."""
  run, options = finished
  weights = ("--config.method.task_weight=1.0", "--config.method.distill_weight=0.0")
  taught = ("--config=configs/digits.py:kd", f"--config.teacher={run}:hybrid", *options)
  assert main([*taught, *weights, f"--workdir={tmp_path / 'student'}"]) == 0
  for line in map(json.loads, (tmp_path / "student" / "metrics.jsonl").open()):
    losses = line["losses"]
    assert losses["distill"] == 0 and losses["teacher_loss"] > 0.01
    assert losses["label_loss"] == pytest.approx(losses["task"]) == losses["loss"]
  result = json.loads((tmp_path / "student" / "result.json").read_text())
  small = 9 * 8 + 16 + 8 * 64 * 3 + 3
  assert (result["parameters"], result["parameters_deployed"]) == (small, small)
  assert (
    json.loads((run / "result.json").read_text())["flops_per_image"]
    > 2 * result["flops_per_image"]
    > 2 * 3 * 2 * (64 * 9 * 8 + 8 * 64 * 3) * 0.8  # the first layer has no input gradient
  )


def test_a_teacher_that_cannot_be_is_told_in_one_line(finished, tmp_path, capsys):
  run, options = finished
  taught = ["--config=configs/digits.py:kd", *options, f"--workdir={tmp_path / 'run'}"]
  (tmp_path / "begun").mkdir()
  for asked, says in (
    ("/nowhere", ["there is no folder /nowhere"]),
    (f"{tmp_path}/begun", ["is not finished", "no result.json"]),
    (f"{run}:leader", ["no single network 'leader'", "student_0, student_1, hybrid, center"]),
    (f"{run}@best-validation", ["no validation split", "best-test or last"]),
    (
      f"{run}:hybrid@first",
      ["'first' is not a checkpoint", "last, best-validation, best-test"],
    ),
    ("", ["kd needs a teacher", "config.teacher=DIR"]),
  ):
    said = told([*taught, f"--config.teacher={asked}"], capsys)
    assert all(word in said for word in says), said

  for changed, says in (
    (dict(classes=4), "classes: 3 -> 4"),
    (dict(size=10), "image: [8, 8, 1] -> [10, 10, 1]"),
    (dict(seed=1), "normalisation.mean"),
  ):
    other = runs.arrays(tmp_path / f"{says[:3]}.npz", **changed)
    arguments = [*taught, f"--config.teacher={run}", f"--config.data.dir={other}"]
    assert says in told(arguments, capsys)

  arguments = [*options, f"--config.teacher={run}", f"--workdir={tmp_path / 'run'}"]
  assert "okdph has no teacher" in told(["--config=configs/digits.py", *arguments], capsys)


def test_the_rate_is_the_one_that_a_wrapper_descends_with(finished):
  _, options = finished
  swa = "--config.wrappers=({'name': 'swa', 'start': '1 epochs', 'learning_rate': 0.003},)"
  config, *_ = parse(["--config=configs/digits.py:base", *options, swa, "--workdir=unused"])
  schedule = build(config, data.load(config)).schedule
  assert [float(schedule(step)) for step in (0, 1, 2, 3)] == pytest.approx(
    [0.1, 0.1, 0.003, 0.003]
  )


def test_every_option_arrives_where_it_belongs(monkeypatch):
  """No two numbers are equal, so that none can stand for another."""
  config = config_of("cifar10", "base")
  config.network, config.views, config.test_view = (
    "tests.methods.tiny:net",
    ("cutout(9)",),
    "plain",
  )
  config.learning_rate, config.momentum, config.weight_decay = 0.3, 0.7, 0.02
  config.nesterov, config.batch_norm_images, config.batch_size = True, 10, 50
  config.epochs, config.milestones = 30, (100, "20 epochs")
  dataset = stand_in(config)._replace(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
  executions, plain = [], []
  monkeypatch.setattr(
    "okdph_jax.experiment.build.trained_as",
    lambda method, how: executions.append(how) or method,
  )
  experiment = build(config, dataset)
  assert {how.moments_over for how in executions} == {10}

  assert (experiment.epoch_steps, experiment.steps) == (1000, 30_000)
  steps = (0, 9_999, 10_000, 19_999, 20_000)
  rates = [0.3, 0.3, 0.03, 0.03, 0.003]
  assert [float(experiment.schedule(step)) for step in steps] == pytest.approx(rates)
  held = build(config, dataset, planned_epochs=20)  # of which 10 epochs are more
  assert held.steps == 30_000 and held.numbers["epochs"] == 20
  assert [float(held.schedule(step)) for step in (6_999, 7_000, 20_000)] == pytest.approx(
    [0.3, 0.03, 0.03]
  )

  (_, ours), theirs = (
    experiment.parts(experiment.numbers),
    optimizers.sgd(0.3, momentum=0.7, weight_decay=0.02, nesterov=True),
  )
  for tx in (ours, theirs):
    params, state = {"students": jnp.float32(2), "shared": {}}, None
    state = tx.init(params)
    for _ in range(2):
      updates, state = tx.update({"students": jnp.float32(0.5), "shared": {}}, state, params)
      params = jax.tree.map(jnp.add, params, updates)
    plain.append(float(params["students"]))
  assert plain[0] == pytest.approx(plain[1])

  white = np.full((1, 32, 32, 3), 255, np.uint8)
  key, level = jax.random.key(0), lambda x: (x - np.array(dataset.mean)) / dataset.std
  np.testing.assert_allclose(experiment.test_view(key, white)[0, 0, 0, 0], level(1), rtol=1e-5)
  seen = np.asarray(experiment.augment(key, white))
  np.testing.assert_allclose(seen.min((0, 1, 2, 3)), level(0), rtol=1e-5)


# DOT's systems in megvii-research/mdistiller: dataset, system, the student's learning rate.
DOT_SYSTEMS = [
  ("cifar100", "resnet32x4-resnet8x4", 0.05),
  ("cifar100", "vgg13-vgg8", 0.05),
  ("cifar100", "resnet32x4-shufflenet_v2", 0.01),
  ("tiny_imagenet", "resnet18_small-mobilenet_v2", 0.2),
  ("tiny_imagenet", "resnet18_small-shufflenet_v2", 0.2),
  ("imagenet2012", "resnet34-resnet18", 0.2),
  ("imagenet2012", "resnet50-mobilenet_v1", 0.2),
]
# dataset: view, the weights of labels and teacher, temperature, delta, epochs, the epochs at
# which the rate falls, batch size, the teacher's learning rate, weight decay.
DOT_SETTINGS = {
  "cifar100": ("hflip", 0.1, 0.9, 4, 0.075, 240, [150, 180, 210], 64, 0.05, 5e-4),
  "tiny_imagenet": ("rotate(20)|flip", 0.1, 0.9, 4, 0.075, 200, [60, 120, 160], 256, 0.2, 5e-4),
  "imagenet2012": ("flip", 0.5, 0.5, 1, 0.09, 100, [30, 60, 90], 512, 0.2, 1e-4),
}


def test_dot_s_systems_are_complete():
  assert dot.SYSTEMS.keys() == {system for _, system, _ in DOT_SYSTEMS}


@pytest.mark.parametrize(("dataset", "system", "rate"), DOT_SYSTEMS)
@pytest.mark.parametrize("method", ["teacher", "ce", "kd", "dot", "control"])
def test_dot_s_systems(dataset, system, rate, method):
  view, task, distill, temperature, delta, epochs, falls, batch, first, decay = DOT_SETTINGS[
    dataset
  ]
  config = dot.get_config(f"{method},{system}")
  check(config)
  data = config.data
  assert (data.name, data.normalise_as) == (
    ("folder", "tiny_imagenet") if dataset == "tiny_imagenet" else (dataset, "")
  )
  sizes = {"tiny_imagenet": 64, "imagenet2012": 224}
  assert data.image_size == sizes.get(dataset)
  assert config.network == system.split("-")[method != "teacher"]
  assert config.views == (view,)
  assert (config.epochs, config.batch_size, config.momentum) == (epochs, batch, 0.9)
  assert config.learning_rate == (first if method == "teacher" else rate)
  assert falls == [
    schedules.milestone(when, epochs=config.epochs, epoch_steps=1) for when in config.milestones
  ]
  assert config.wrappers == (({"name": "dot", "delta": delta},) if method == "dot" else ())
  if method == "control":  # a constant gradient moves as far as under DOT
    task, distill = task * 0.1 / (0.1 + delta), distill * 0.1 / (0.1 - delta)
    decay *= 0.1 / (0.1 + delta)
  assert config.weight_decay == pytest.approx(decay)
  if method == "teacher":
    assert config.method.name == "base"
  else:
    weights = (1, 0) if method == "ce" else (task, distill)
    ours = config.method.task_weight, config.method.distill_weight
    assert ours == pytest.approx(weights)
    assert (config.method.name, config.method.temperature) == ("kd", temperature)
  built = assemble(tiny.context(teacher=True), config.method, config.wrappers)
  assert built.views == 1


def test_dot_s_control_follows_the_momentum():
  config = load_config("dot:control,vgg13-vgg8", [("momentum", "0.8")])
  weights = config.method.task_weight, config.method.distill_weight, config.weight_decay
  slower, faster = 0.2 / 0.275, 0.2 / 0.125
  assert weights == pytest.approx((0.1 * slower, 0.9 * faster, 5e-4 * slower))


def test_self_distillation_is_kd_in_generations():
  config = self_distillation.get_config("vgg16,cifar100,4")
  check(config)
  assert (config.method.name, config.network, config.data.name) == ("kd", "vgg16", "cifar100")
  assert config.generations == 4
  assert config.method.task_weight + config.method.distill_weight == 1
