"""Finds configs by file or name, changes their options, and checks them."""

import ast
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import ml_collections
from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from okdph_jax import durations
from okdph_jax.errors import nearest, one_line, shown
from okdph_jax.experiment.options import BY_NAME, OPTIONS
from okdph_jax.saved_config import NO_EFFECT, USERS_OWN

PACKAGE = Path(__file__).parents[1]
GROUPS = ("data", "method", *(option.name for option in OPTIONS if option.kind is dict))
OPEN = tuple(f"{name}." for name in GROUPS if name != "data")  # groups of free names
Overrides = Sequence[tuple[str, str]]  # ("method.omega", "0.5"), ...


def default() -> ConfigDict:
  """The default config: every option of `OPTIONS`; of the method only its name."""
  return _with_defaults(ml_collections.ConfigDict())


def complete(config: ConfigDict) -> ConfigDict:
  """Adds missing options to a config, and those of its method, with their defaults."""
  with config.unlocked():
    _with_defaults(config)
    for name, value in method_options(config.method.name).items():
      if name not in config.method:
        config.method[name] = value
  return config


def _with_defaults(config):
  for option in OPTIONS:
    group, name = _place(config, option.name)
    if name in group:
      continue
    if option.kind is dict:
      group[name] = ml_collections.ConfigDict(option.default)
    elif option.default is None:
      group[name] = config_dict.placeholder(option.kind)
    else:
      group[name] = option.default
  return config


def _place(config, name):
  """(the ConfigDict that holds the option, its name there); adds the group if it is missing."""
  *groups, name = name.split(".")
  for group in groups:
    if group not in config:
      config[group] = ml_collections.ConfigDict()
    config = config[group]
    if not isinstance(config, ml_collections.ConfigDict):
      raise ValueError(f"config.{group} is {shown(config)}; it must be a group of options")
  return config, name


def method_options(name: str) -> dict[str, Any]:
  """{option: default} of a method; {} if there is no such method."""
  from okdph_jax.methods import METHODS  # imports JAX

  return defaults(METHODS[name]) if name in METHODS else {}


def defaults(builder: Callable[..., Any]) -> dict[str, Any]:
  """A method's or wrapper's options with their defaults."""
  parameters = inspect.signature(builder).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


# Finding and changing.


class ConfigFile(NamedTuple):
  """A config file and its argument."""

  name: str  # "cifar10"
  get_config: Callable[..., ConfigDict]  # called with the argument, if there is one
  template: dict[str, Any]  # {part of the argument: default}: the file's ARGUMENT, or {}
  argument: str  # "okdph,resnet32"

  def parts(self) -> dict[str, str]:
    """The given parts of the argument by name."""
    values = [value.strip() for value in self.argument.split(",")]
    return {k: v for k, v in zip(self.template, values, strict=False) if v}

  def config(self) -> ConfigDict:
    """The file's config, complete; ValueError, in one line, if the file fails."""
    try:
      config = self.get_config(self.argument) if self.argument else self.get_config()
    except ValueError:
      raise
    except Exception as error:  # a user's file may raise anything
      raise ValueError(
        f"the config {self.name} fails: {type(error).__name__}: {one_line(error)}"
      ) from error
    if not isinstance(config, ml_collections.ConfigDict):
      raise ValueError(
        f"the config {self.name} returns a {type(config).__name__}; its get_config must return "
        "an ml_collections.ConfigDict"
      )
    return complete(config)


def load_config(spec: ConfigDict | str, overrides: Overrides = ()) -> ConfigDict:
  """Loads a config and changes options.

  spec: a ConfigDict; a file, "configs/cifar10.py:okdph,resnet32"; or a name,
    "cifar10:okdph,resnet32", of a file in ./configs or in this package.
  overrides: (name, text) pairs, ("method.omega", "0.5"). Another `method.name` or
    `method.students` also changes the method's options and the views, as if it were given in
    the config's argument.

      >>> config = load_config("digits:dml,resnet8", [("epochs", "3")])
      >>> config.method.name, config.epochs
      ('dml', 3)

  Raises:
    ValueError: in one line, for an unknown config or option, or a value that is not allowed.
  """
  check_override_names(overrides)
  if isinstance(spec, ml_collections.ConfigDict):
    config = complete(spec.copy_and_resolve_references())
  else:
    config = following(find(spec), overrides).config()
  given = dict(overrides)
  if given.get("method.name", config.method.name) != config.method.name:
    name = given["method.name"]
    config.method = ml_collections.ConfigDict({"name": name} | method_options(name))
  return override(config, overrides)


def following(file: ConfigFile, overrides: Overrides) -> ConfigFile:
  """The file with its argument changed to the overrides' method and number of students."""
  given, parts = dict(overrides), file.parts()
  name, students = given.get("method.name"), given.get("method.students")
  config = file.config()
  other = name not in (None, config.method.name)
  if "method" in file.template and other:
    parts["method"] = name
  if "students" in file.template and students is not None and "views" not in given:
    if other or students != str(config.method.get("students")):
      parts["students"] = students
  if parts == file.parts():
    return file
  return file._replace(argument=",".join(parts.get(part, "") for part in file.template))


def find(spec: str) -> ConfigFile:
  """The `ConfigFile` of a file or a name, see `load_config`."""
  path, _, argument = spec.partition(":")
  name, module = load_file(path, "configs", "get_config")
  return ConfigFile(name, module.get_config, getattr(module, "ARGUMENT", {}), argument)


def load_file(path: str, folder: str, function: str) -> tuple[str, Any]:
  """(name, module) of a Python file that defines `function`.

  path: the file, or the name of a file in ./`folder` or in that folder of this package.

  Raises:
    ValueError: in one line, if there is no such file, or if it fails.
  """
  asked, stem = Path(path), Path(path).stem
  shipped = [Path(folder), PACKAGE / folder, PACKAGE.parent / folder]
  candidates = [place / f"{stem}.py" for place in shipped]
  if asked.suffix == ".py":  # the file itself; "configs/cifar10.py" works in all folders
    ours = str(asked.parent) in (".", folder)
    candidates = [asked, *(candidates if ours else [])]
  elif asked.name != path:
    candidates = []
  file = next((c for c in candidates if c.is_file()), None)
  if file is None:
    there = sorted({f.stem for place in shipped for f in place.glob("[!_]*.py")})
    near = nearest(path, [f"{folder}/{n}.py" for n in there] if asked.suffix else there)
    kind = Path(folder).name.removesuffix("s")
    raise ValueError(f"no {kind} file {path}{near} (there are {', '.join(there)})")
  try:
    module_spec = importlib.util.spec_from_file_location(f"config_{stem}", file)
    assert module_spec and module_spec.loader  # true of files named *.py
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    _ = getattr(module, function)
  except Exception as error:  # a user's file may raise anything
    raise ValueError(f"{file}: {type(error).__name__}: {one_line(error)}") from error
  return stem, module


def check_override_names(overrides: Overrides) -> None:
  """Raises ValueError for unknown options; those of a method are checked later."""
  for name, _ in overrides:
    if name in GROUPS:
      raise ValueError(f"config.{name} is a group of options; write --config.{name}.NAME=...")
    if name not in BY_NAME and not name.startswith(OPEN):
      raise ValueError(f"the config has no option {name!r}{nearest(name, BY_NAME)}")


def override(config: ConfigDict, overrides: Overrides) -> ConfigDict:
  """`config` with options changed. overrides: (name, text) pairs."""
  known = [f"method.{name}" for name in config.method]
  for name, _ in overrides:
    if name.startswith("method.") and name not in known:
      raise ValueError(
        f"method {config.method.name} has no option {name.removeprefix('method.')!r}"
        f"{nearest(name, known)} (there are {', '.join(known)})"
      )
  own = {k: v for k, v in overrides if k.startswith("network_options.")}
  for name, text in own.items():  # ml_collections cannot add options
    with config.unlocked():
      config.network_options[name.partition(".")[2]] = _literal(text)
  several = {k: _literal(v) for k, v in overrides if k.startswith("method.")}
  several = {k: v for k, v in several.items() if isinstance(v, tuple)}  # okdph's alpha
  for name, value in several.items():
    with config.ignore_type():
      config.method[name.partition(".")[2]] = value
  done = own.keys() | several.keys()
  overrides = [(name, text) for name, text in overrides if name not in done]
  arguments = ["config", *(f"--config.{name}={text}" for name, text in overrides)]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_dict(
    "config", config, flag_values=values, sys_argv=arguments
  )
  try:
    values(arguments)
  except Exception as error:  # absl and ml_collections raise anything
    text = re.sub(r"\S{80,}", lambda word: f"{word[0][:60]}...", str(error))
    raise ValueError(one_line(text)) from error
  return holder.value


def changed_data(changes: Overrides) -> dict[str, Any]:
  """Parses (name, text) pairs of options of `config.data` as {name: value}."""
  check_override_names([(f"data.{name}", text) for name, text in changes])
  config = override(default(), [(f"data.{name}", text) for name, text in changes])
  return {name: config.data[name] for name, _ in changes}


def _literal(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def run_name(spec: str, overrides: Overrides = ()) -> str:
  """A readable name for the folder of a run: "cifar10-okdph-resnet32-seed42-epochs60".

  It has the parts of the config's argument, the seed, and the options that were changed, or a
  hash of them if they are long. Options that do not affect results are left out, so that a
  command with another value finds the same folder; of images of the user's, the name of their
  folder or file is a part.
  """
  import hashlib

  file = following(find(spec), overrides)
  own, config = flat(file.config()), flat(load_config(spec, overrides))
  template, given = file.template, file.parts()
  parts = [file.name]
  for part, fallback in template.items():
    fallback = fallback[0] if isinstance(fallback, tuple) else fallback
    if part == "network" and config["network"] != own["network"]:
      parts.append(config["network"].rpartition(":")[2])
    elif fallback is not None:
      parts.append(given.get(part, str(fallback)))
    elif part in given and given[part] != str(method_options(own["method.name"]).get(part)):
      parts.append(f"{part}{given[part]}")
  if not template:
    parts += [file.argument] if file.argument else [own["method.name"], own["network"]]
  parts.append(f"seed{config['seed']}")
  named = NO_EFFECT | {"seed"} | template.keys() & {"network"}
  changed = {k: v for k, v in config.items() if k not in named and own.get(k) != v}
  if config["data.name"] in USERS_OWN:
    changed["data.dir"] = Path(config["data.dir"]).stem
  text = [f"{name.rpartition('.')[2]}{value}" for name, value in sorted(changed.items())]
  if len("-".join(text)) > 48 or not all(re.fullmatch(r"[\w.+-]+", part) for part in text):
    text = [hashlib.sha256(repr(sorted(changed.items())).encode()).hexdigest()[:8]]
  return re.sub(r"[^\w.+-]+", "_", "-".join([*parts, *text]))


def flat(config: ConfigDict) -> dict[str, Any]:
  """{"data.name": value, ...} of a config."""
  items = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      items |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
    else:
      items[name] = value
  return items


# Checking.


def check(config: ConfigDict) -> None:
  """Raises ValueError, in one line, for an unknown option or a value that is not allowed.

  Adds missing options to the config, with their defaults.
  """
  _check_groups(config)
  complete(config)
  for name in flat(config):
    if name not in BY_NAME and not name.startswith(OPEN):
      raise ValueError(f"the config has no option {name!r}{nearest(name, BY_NAME)}")
  for option in OPTIONS:
    group, name = _place(config, option.name)
    value = group[name]
    if option.kind is dict or value is None and option.default is None:
      continue
    check_type(f"config.{option.name}", value, option.kind)
    if not option.admits(value):
      bounds = option.bounds
      bounds = f"lie in {bounds}" if isinstance(bounds, str) else f"be {' or '.join(bounds)}"
      raise ValueError(f"config.{option.name} is {shown(value)}; it must {bounds}")
  _check_sequences(config)
  check_parts(config)
  if config.data.test == config.data.train:
    raise ValueError(
      f"config.data.test and config.data.train are both {config.data.test!r}; choose another "
      "test split"
    )
  name = config.method.name
  if name != "kd" and (config.teacher or config.generations > 1):
    raise ValueError(
      f"the method {name} has no teacher; use kd, or leave config.teacher empty and "
      "config.generations at 1"
    )


def check_parts(config: ConfigDict) -> None:
  """Raises ValueError unless `accumulate` and `batch_norm_images` divide the batch."""
  batch, parts, images = config.batch_size, config.accumulate, config.batch_norm_images
  if batch % parts:
    raise ValueError(
      f"config.accumulate={parts} does not divide batch_size={batch}; choose a number that does"
    )
  part = f"batch_size / accumulate={batch // parts}" if parts > 1 else f"batch_size={batch}"
  if images and batch // parts % images:
    raise ValueError(
      f"config.batch_norm_images={images} does not divide {part}; choose a number that does"
    )


def _check_groups(config):
  for name in GROUPS:
    if name in config and not isinstance(config[name], ml_collections.ConfigDict):
      raise ValueError(f"config.{name} is {shown(config[name])}; it must be a group of options")


def _check_sequences(config):
  for wrapper in config.wrappers:
    if not isinstance(wrapper, (dict, ml_collections.ConfigDict)):
      raise ValueError(
        f"config.wrappers has {shown(wrapper)}; each must be a dict, written as in "
        "\"({'name':'swa'},)\""
      )
  for view in config.views:
    if not isinstance(view, str):
      raise ValueError(
        f"config.views has {shown(view)}; each must be a string such as 'crop(4)|flip'"
      )
  if not config.views:
    raise ValueError("config.views is empty; give one view for all networks, or one for each")
  for when in config.milestones:
    if isinstance(when, str):
      try:
        when, _ = durations.parse(when)
      except ValueError as error:
        raise ValueError(f"config.milestones: {error}") from None
    elif isinstance(when, bool) or not isinstance(when, (int, float)):
      raise ValueError(
        f"config.milestones has {shown(when)}; each must be a number, or '40 epochs'"
      )
    if not 0 <= when <= 1e6:
      raise ValueError(f"config.milestones has {when}; each must lie in [0, 1e6]")


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
  """Raises ValueError for names in `given` that are not in `known`."""
  for name in sorted(set(given) - set(known)):
    hint = nearest(name, known)
    raise ValueError(f"{where} has no option {name!r}{hint} (there are {', '.join(known)})")


def check_type(name: str, value: Any, kind: Any) -> None:
  """Raises ValueError for a value of another type, and for floats that are not finite.

  kind: a type, or a union of types. An int is accepted as a float; a bool is not a number.
  """
  kind = tuple if get_origin(kind) is tuple else kind  # tuple[str, ...]
  if isinstance(value, bool) and kind is not bool or not isinstance(value, kind):
    if not (kind is float and type(value) is int):
      wanted = getattr(kind, "__name__", str(kind))
      given = f"{shown(value)}, a {type(value).__name__}"
      raise ValueError(f"{name} is {given}; it must be {wanted}")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{name} is {value}; it must be a finite number")
