from typing import Any

from absl import flags
from ml_collections.config_dict import ConfigDict

def DEFINE_config_dict(
  name: str, config: ConfigDict, *, flag_values: flags.FlagValues, sys_argv: list[str]
) -> flags.FlagHolder[Any]: ...
