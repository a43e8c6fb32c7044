"""Every config of the paper, on stand-ins for its data."""

import collections
import importlib
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

from okdph_jax.core import Batch
from okdph_jax.data import Dataset, Split
from okdph_jax.experiment import paper
from okdph_jax.experiment.build import build
from okdph_jax.experiment.config import check, load_config
from okdph_jax.main import parse
from okdph_jax.methods import METHODS
from okdph_jax.training.step import initial_state, train_step
from tests.methods import tiny

FILES = ("cifar10", "cifar100", "imagenet", "limited", "noisy", "release", "digits")
ROOT = pathlib.Path(__file__).parents[2]
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet2012": 1000, "digits": 10}
SIZES = {"cifar10": 50_000, "cifar100": 50_000, "imagenet2012": 1_281_167, "digits": 1_442}


def config_of(file, argument=""):
  return importlib.import_module(f"configs.{file}").get_config(argument)


def stand_in(config):
  """The dataset's shapes, without its images."""
  name = config.data.name
  size = round(SIZES[name] * config.data.fraction)
  shape = (8, 8, 1) if name == "digits" else (config.data.image_size or 32,) * 2 + (3,)
  train = Split(np.broadcast_to(np.uint8(0), (size, *shape)), np.zeros(size, np.int32))
  channels = (0.5,) * shape[-1]
  return Dataset(
    name=name,
    place="",
    train=train,
    validation=None,
    test=train[:10],
    class_names=tuple(map(str, range(CLASSES[name]))),
    mean=channels,
    std=channels,
    normalisation="",
    distinct=size,
  )


def built(config, network="tests.methods.tiny:net"):
  config.network = network
  check(config)
  return build(config, stand_in(config))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", [*METHODS, *paper.WRAPPED])
def test_every_config_builds_every_method(file, name):
  config = config_of(file, name)
  assert config.method.name == (name if name in METHODS else "base")
  if name == "kd":
    with pytest.raises(ValueError, match="teacher"):
      built(config)
  else:
    parts = built(config)
    assert parts.method.views == len(config.views)
    assert parts.single


def test_defaults_build_the_paper_s_networks():
  assert config_of("cifar10").network == config_of("noisy").network == "resnet32"
  config = config_of("imagenet")
  learner = built(config, config.network).learner
  assert sum(leaf.size for leaf in jax.tree.leaves(learner.params)) == 2 * 11_689_512


# The supplement, Tables 6 and 7: omega / beta / gamma / fuse_every.
NETWORKS = ("resnet32", "resnet110", "vgg16", "densenet40_12", "wrn20_8")
COLUMNS = [(n, 2) for n in NETWORKS] + [(n, m) for n in ("resnet32", "vgg16") for m in (3, 4)]
TABLE_6 = {
  "cifar10": ".8/.8/.5/1e .8/.8/.5/5b .3/.3/1/1e .8/.8/.5/5b .8/.8/.5/1e "
  ".8/.8/.5/1e .8/.8/.5/5b .8/.8/.5/1e .3/.3/1/1e",
  "cifar100": "1/.5/1/5b .8/.8/.5/5b .3/.3/1/1e 1/.5/.5/5b .5/.5/.5/5b "
  "1/.5/1/5b 1/.5/1/5b .3/.3/1/3e .3/.3/1/2e",
}
TABLE_7 = {  # noisy, 10 %, 1 %
  ("cifar10", "resnet32"): ".8/.8/.5/5b 1/.5/1/5b 1/.5/.5/5b",
  ("cifar10", "vgg16"): ".3/.3/1/1e .3/.3/1/1e .3/.3/1/1e",
  ("cifar10", "densenet40_12"): ".8/.8/.5/5b .8/.8/.5/5b .8/.8/.5/5b",
  ("cifar100", "resnet32"): "1/0/.5/5b .5/.5/1/5b 1/.5/.5/5b",
  ("cifar100", "vgg16"): ".3/.3/1/1e .3/.3/1/1e .8/.8/1/1e",
  ("cifar100", "densenet40_12"): "1/.5/.5/5b 1/.5/.5/5b .8/.8/.5/5b",
}
WORDS = {"5b": "5 steps", "1e": "1 epoch", "2e": "2 epochs", "3e": "3 epochs"}


def cell_of(config):
  m = config.method
  return m.omega, m.beta, m.gamma, m.fuse_every


def cells(row):
  for text in row.split():
    *numbers, every = text.split("/")
    yield (*map(float, numbers), WORDS[every])


@pytest.mark.parametrize("dataset", TABLE_6)
def test_table_6(dataset):
  for (network, students), cell in zip(COLUMNS, cells(TABLE_6[dataset]), strict=True):
    assert cell_of(config_of(dataset, f"okdph,{network},{students}")) == cell


@pytest.mark.parametrize("dataset, network", TABLE_7)
def test_table_7(dataset, network):
  noisy, tenth, hundredth = cells(TABLE_7[dataset, network])
  for noise in ("train", "both"):
    assert cell_of(config_of("noisy", f"okdph,{network},{dataset},{noise}")) == noisy
  assert cell_of(config_of("limited", f"okdph,{network},{dataset},0.1")) == tenth
  assert cell_of(config_of("limited", f"okdph,{network},{dataset},0.01")) == hundredth


def test_without_a_cell_the_most_frequent_one_is_taken():
  given = [cell for row in (*TABLE_6.values(), *TABLE_7.values()) for cell in cells(row)]
  [(cell, times)] = collections.Counter(given).most_common(1)
  assert (len(given), times) == (36, 9)
  assert cell_of(config_of("imagenet")) == cell
  assert cell_of(config_of("limited", "okdph,resnet20,cifar10,0.05")) == cell
  whole = config_of("limited", "okdph,vgg16,cifar10,1")
  assert cell_of(whole) == cell_of(config_of("cifar10", "okdph,vgg16"))


@pytest.mark.parametrize(
  "file, argument, views",
  [
    ("cifar10", "okdph,vgg16", "hflip cutout augment"),
    ("cifar10", "okdph,vgg16,3", "hflip cutout augment auto_aug"),
    ("cifar10", "okdph,vgg16,4", "hflip cutout augment plain auto_aug"),
    ("cifar100", "", "hflip+rot cutout augment"),
    ("cifar100", "okdph,vgg16,4", "hflip+rot cutout augment plain auto_aug"),
    ("imagenet", "", "flip randaugment autoaugment"),  # cropped already
    ("cifar10", "base,resnet32,3", "hflip"),
    ("cifar100", "dml", "hflip+rot"),
    ("cifar10", "kdcl", "hflip"),
    ("cifar10", "one", "hflip"),
    ("cifar10", "ffl,resnet32,4", "hflip"),
    ("cifar10", "pcl", "hflip"),
    ("cifar10", "mean_teacher", "hflip"),
    ("cifar100", "sam", "hflip+rot"),
    ("noisy", "dml,vgg16,cifar100", "hflip+rot|noise"),
  ],
)
def test_views(file, argument, views):
  assert " ".join(config_of(file, argument).views) == views


@pytest.mark.parametrize("argument, count", [("dml", 2), ("pcl", 3), ("base,resnet32,3", 3)])
def test_a_single_view_is_for_all_networks(argument, count):
  """The config of a run lists it once per network, as configs of earlier versions did."""
  config = config_of("cifar10", argument)
  built(config)
  assert config.views == ("hflip",) * count


def test_methods_on_digits_have_equal_views():
  okdph = config_of("digits").views
  assert okdph == ("crop(1)", "crop(1)|rotate(15)", "crop(1)|cutout(3)")
  for name in METHODS:
    if name != "okdph":
      assert config_of("digits", name).views == (f"any({', '.join(okdph)})",)


def test_noise_in_the_test_view_is_the_release_s_setting():
  image, key = np.full((1, 32, 32, 3), 128, np.uint8), jax.random.key(0)
  config = config_of("noisy", "base")
  clean = built(config).test_view(key, image)
  both = built(config_of("noisy", "base,resnet32,cifar10,both")).test_view(key, image)
  assert np.ptp(clean) == 0
  np.testing.assert_allclose(np.std(both), 1, atol=0.05)
  np.testing.assert_allclose(np.mean(both - clean), 0, atol=0.1)


@pytest.mark.parametrize(
  "file, base, epoch_steps, epochs",
  [("cifar10", 0.1, 391, (150, 225)), ("imagenet", 0.1, 5005, (30, 60, 90))],
)
def test_the_rate_falls_at_the_milestones(file, base, epoch_steps, epochs):
  config = config_of(file, "base")
  parts = built(config)
  assert parts.epoch_steps == epoch_steps
  for i, epoch in enumerate(epochs):
    step = epoch * epoch_steps
    np.testing.assert_allclose(parts.schedule(step - 1), base * 0.1**i, rtol=1e-5)
    np.testing.assert_allclose(parts.schedule(step), base * 0.1 ** (i + 1), rtol=1e-5)
  assert parts.steps == config.epochs * epoch_steps


def test_the_recipe():
  cifar, imagenet = config_of("cifar100"), config_of("imagenet")
  assert (cifar.batch_size, cifar.epochs, cifar.weight_decay) == (128, 300, 5e-4)
  assert (imagenet.batch_size, imagenet.epochs, imagenet.weight_decay) == (256, 100, 1e-4)
  assert (imagenet.data.train, imagenet.data.test) == ("train", "validation")
  limited = config_of("limited", "okdph,resnet32,cifar100,0.1").data
  assert (limited.name, limited.fraction, limited.replacement) == ("cifar100", 0.1, True)


@pytest.mark.parametrize(
  "file, argument, wrapper",
  [
    ("cifar10", "sam", dict(name="sam", rho=0.05)),
    ("cifar100", "sam", dict(name="sam", rho=0.1)),
    ("limited", "sam,resnet32,cifar100", dict(name="sam", rho=0.1)),
    ("release", "sam", dict(name="asam", rho=0.1, eta=0.0)),
    ("release", "sam,resnet32,cifar100", dict(name="asam", rho=0.05, eta=0.0)),
    ("cifar10", "swa", dict(name="swa", start=241, learning_rate=0.001)),
  ],
)
def test_rows_that_wrap_base(file, argument, wrapper):
  config = config_of(file, argument)
  assert [dict(options) for options in config.wrappers] == [wrapper]
  assert config.method.label_smoothing == (0.1 if "sam" in argument else 0.0)
  assert config.method.students == 1


def test_the_release_s_switches():
  okdph = config_of("release").method
  assert not okdph.hybrid_gradient and okdph.same_init
  assert (okdph.weights, okdph.fuse_with, okdph.fuse_clock) == ("uniform", "previous", "epoch")
  kdcl = config_of("release", "kdcl,resnet32,cifar100").method
  weights = kdcl.task_weight, kdcl.distill_weight
  assert (kdcl.target, weights, kdcl.temperature) == ("mean", (0.5, 0.5), 4)


@pytest.mark.parametrize(
  "method, options, weight_decay, nesterov",
  [
    ("one", dict(students=3, detach_target=True), 1e-4, False),
    ("okddip", dict(students=4, detach_mean=False), 5e-4, True),
    ("ffl", dict(students=2, fusion_weight_decay=1e-5), 1e-4, True),
    ("pcl", dict(students=3, decay=0.999), 5e-4, True),
  ],
)
def test_the_official_values(method, options, weight_decay, nesterov):
  config = config_of("official", f"{method},resnet32,cifar10")
  assert config.method.to_dict() == {"name": method, "temperature": 3.0} | options
  assert (config.weight_decay, config.nesterov) == (weight_decay, nesterov)
  assert (config.batch_size, config.epochs, config.learning_rate) == (128, 300, 0.1)
  assert (config.momentum, config.milestones) == (0.9, (150, 225))
  assert built(config).method.views == len(config.views)


def test_the_release_in_all_its_parts():
  plain, views = config_of("release"), ("hflip", "cutout", "augment")
  assert plain.views == views and plain.data.fraction == 1 and not plain.nesterov
  small = config_of("release", "okdph,resnet32,cifar10,0.01")
  assert (small.data.fraction, small.data.replacement) == (0.01, True)
  assert cell_of(small) == cell_of(config_of("limited"))
  noisy = config_of("release", "okdph,vgg16,cifar100,1,both")
  assert cell_of(noisy) == cell_of(config_of("noisy", "okdph,vgg16,cifar100"))
  assert all(view.endswith("|noise") for view in (*noisy.views, noisy.test_view))
  train = config_of("release", "dml,vgg16,cifar100,1,train")
  assert train.views == ("hflip+rot|noise",) and train.test_view == "plain"
  four = config_of("release", "okdph,resnet32,cifar10,1,none,4")
  assert four.views == (*views, "plain", "auto_aug") and four.method.fuse_every == "5 steps"
  readme = config_of("release", "okdph,resnet32,cifar10,1,none,4,readme")
  assert readme.views == (*views, "auto_aug", "plain") and readme.method.fuse_every == "1 epoch"
  assert config_of("release", "dml,resnet32,cifar10,1,none,4").method.students == 4
  assert config_of("release", "pcl,densenet40_12").method.students == 3
  assert config_of("release", "pcl,densenet40_12,cifar10,1,none,2").method.students == 2
  for config in (small, noisy, train, four, readme):
    assert config.method.get("fuse_with", "previous") == "previous"
    built(config)


def test_an_alpha_for_each_student_is_a_tuple():
  config = load_config("digits", [("method.alpha", "(1.0, 2.0)")])
  assert config.method.alpha == (1.0, 2.0)
  assert built(config).method.views == 3
  with pytest.raises(ValueError, match="has 3 numbers for 2 students"):
    built(load_config("digits", [("method.alpha", "(1.0, 2.0, 3.0)")]))


def documented():
  """The commands of docs/configs.md and of the configs' docstrings."""
  texts = [(ROOT / "docs" / "configs.md").read_text()]
  texts += [importlib.import_module(f"configs.{file}").__doc__ for file in (*FILES, "official")]
  for text in texts:
    text = re.sub(r"\n +--config\.", " --config.", text)
    for line in re.findall(r"--config=(?!NAME)[^`\n]*", text):
      yield tuple(word for word in shlex.split(line) if not word.startswith("--workdir"))


@pytest.mark.parametrize("arguments", sorted(set(documented())), ids=" ".join)
def test_documented_commands_build(arguments):
  config, *_ = parse([*arguments, "--workdir=unused"])
  if config.method.name == "kd":
    check(config)  # its teacher is a run
  else:
    built(config)


@pytest.mark.parametrize(
  "argument, says",
  [
    ("cifar10.py:okdph,resnet32,two", "students is 'two'; it must be a whole number"),
    ("cifar10.py:okdph,resnet32,9", "2, 3, 4 students on cifar10, not for 9"),
    ("imagenet.py:okdph,resnet18,3", "2 students on imagenet2012, not for 3"),
    ("cifar10.py:kr,resnet32,2", "kr trains a single network"),
    ("cifar10.py:base,resnet32,0", "students is 0"),
    ("cifar10.py:okdhp", "did you mean 'okdph'"),
    ("cifar10.py:okdph,vgg16,2,cifar100", "METHOD,NETWORK,STUDENTS"),
    ("limited.py:okdph,vgg16,cifar11", "dataset 'cifar11' is not one of cifar10, cifar100"),
    ("limited.py:okdph,vgg16,cifar10,tenth", "fraction is 'tenth'; it must be a number"),
    ("noisy.py:okdph,vgg16,cifar10,test", "noise 'test' is not one of train, both"),
    ("release.py:resnet32", "method 'resnet32' is not one of"),
    ("release.py:okdph,resnet32,cifar10,0.1,both", "no cell of 10 % of the images with noise"),
    ("release.py:dml,resnet32,cifar10,1,none,4,readme", "okdph's with four students"),
    ("official.py:dml", "method 'dml' is not one of one, okddip, ffl, pcl"),
  ],
)
def test_errors_are_one_line(argument, says):
  with pytest.raises(ValueError) as error:
    parse([f"--config=configs/{argument}", "--workdir=unused"])
  assert says in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "file, argument",
  [("imagenet", "okdph"), ("noisy", "pcl,net,cifar100,both"), ("release", "sam")],
)
def test_a_step(file, argument):
  config = config_of(file, argument)
  if file == "imagenet":
    config.data.image_size = 16
  parts = built(config)
  shape = stand_in(config).image_shape
  crops = (parts.method.views,) if file == "imagenet" else ()
  image = np.random.default_rng(0).integers(0, 256, (*crops, 4, *shape)).astype(np.uint8)
  batch, key = Batch(image, np.arange(4, dtype=np.int32)), jax.random.key(0)
  pieces = *parts.parts(parts.numbers), parts.augment

  def step(key):
    state = initial_state(*pieces, batch, key)
    return state, *train_step(*pieces, state, batch, key)

  before, after, metrics = tiny.jit(step)(key)
  assert after.step == 1 and np.isfinite(metrics["loss"])
  moved = jax.tree.map(lambda a, b: (a != b).any(), before.learner.params, after.learner.params)
  assert all(jax.tree.leaves(moved))
