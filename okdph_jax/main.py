"""`python -m okdph_jax.main --config=configs/cifar10.py --workdir=DIR`: flags to exit code.

Exit codes: 0 finished, 1 the run failed, 2 what was asked cannot be run, 75 interrupted: the
same command goes on.
"""

import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from okdph_jax.errors import one_line


def parse(arguments):
  """(config, workdir, pod) as asked for; ValueError, in one line, for anything wrong."""
  # ml_collections wants the file before what overrides it.
  arguments = sorted(arguments, key=lambda argument: not argument.startswith("--config="))
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    "config", None, flag_values=values, sys_argv=["main", *arguments]
  )
  workdir = flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
  pod = flags.DEFINE_bool(
    "pod", False, "one of several processes of the run", flag_values=values
  )
  try:
    rest = values(["main", *arguments])[1:]
    asked, folder = config.value, workdir.value
    if asked is not None:
      asked.keys()  # what stands in for a config that did not load raises here
  except Exception as error:  # absl, ml_collections and the config file raise what they like
    raise ValueError(explain(error)) from error
  if rest:
    raise ValueError(f"{' '.join(rest)!r} is not an option; write --config=... --workdir=...")
  if asked is None or not folder:
    raise ValueError(
      "--config=configs/FILE.py[:METHOD,NETWORK,...] and --workdir=DIR are needed"
    )
  return asked, folder, pod.value


def explain(error):
  """What absl and ml_collections mean, in one line."""
  text = str(error)
  missing = re.search(r"No such file or directory: '(.*?)'", text)
  if missing:
    there = (
      ", ".join(sorted(str(path) for path in Path("configs").glob("[!_]*.py"))) or "none here"
    )
    return f"no config file {missing[1]}; there are {there}"
  if isinstance(error, (KeyError, AttributeError)):
    text = text.replace("\\", "").replace("'", "").replace("\n", " ").replace("n Did", " Did")
    name, _, hint = text.strip('"').partition("Did you mean ")
    hint = hint and "; did you mean " + hint.split(" instead")[0] + "?"
    return f"the config has no option {name.strip().rstrip('n')!r}{hint}"
  if "Traceback" in text:  # of the config file: its last line is the message
    text = text.strip().splitlines()[-1].partition(": ")[2]
  return one_line(text, width=sys.maxsize)


def at_run_time(error, pod):
  """What an error of XLA means, in one line; None where it means a mistake of ours."""
  if type(error).__name__ != "JaxRuntimeError":
    return None
  if "RESOURCE_EXHAUSTED" in str(error):
    return f"a device has not enough memory ({one_line(error)}); lower config.batch_size"
  if pod:
    return (
      f"the pod fell apart ({one_line(error)}); the process that failed first says why, and "
      "the same command goes on from the last checkpoint"
    )
  return None


def main(arguments=None):
  pod = False
  try:
    config, workdir, pod = parse(sys.argv[1:] if arguments is None else arguments)
    from okdph_jax.experiment.fit import fit
    from okdph_jax.runtime.distributed import (
      join,  # JAX comes with it: a misspelt flag needs no JAX
    )

    if pod:
      join()
    return fit(config, workdir)
  except (ValueError, OSError) as error:
    code, meaning = 2, one_line(error, width=sys.maxsize)
  except FloatingPointError as error:
    code, meaning = 1, one_line(error, width=sys.maxsize)
  except RuntimeError as error:
    code, meaning = 1, at_run_time(error, pod)
    if not meaning:
      raise
  print(f"okdph_jax: {meaning}", file=sys.stderr)
  return code


if __name__ == "__main__":
  from okdph_jax.runtime import distributed, host

  host.use_huge_pages()
  code = main()
  if code in (1, 2):
    distributed.exit_without_barrier(code)
  sys.exit(code)
