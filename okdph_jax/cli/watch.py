"""`okdph watch`: the progress of all runs below a directory, without JAX."""

import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from okdph_jax.cli.arguments import Parser, command
from okdph_jax.durations import clock
from okdph_jax.run import RESULT, Run
from okdph_jax.status import (
  FAILED,
  FINISHED,
  INTERRUPTED,
  RUNNING,
  STATES,
  Status,
  find,
  status,
)

SECONDS = 2  # between two looks at the files
STYLES = {RUNNING: "green", FAILED: "bold red", INTERRUPTED: "yellow", FINISHED: "dim"}

DESCRIPTION = """\
Shows the progress of all runs below a directory until Ctrl-C. It only reads their files, so it
also works on another machine that sees them.

  okdph watch runs/table1
"""


@command
def main(arguments: list[str]) -> int:
  parser = Parser("watch", DESCRIPTION)
  parser.add_argument("root", nargs="?", default="runs", help="directory of the runs (runs)")
  parser.add_argument("--once", action="store_true", help="print the table once and exit")
  flags = parser.parse(arguments)
  root = Path(flags.root)
  if not root.is_dir():
    raise ValueError(f"there is no directory {root}; name the one that contains the runs")
  console = Console()
  if flags.once:
    if not console.is_terminal:
      console.width = 200  # a file has no width
    console.print(shown(root))
    return 0
  try:
    with Live(shown(root), console=console, auto_refresh=False) as live:
      while True:
        time.sleep(SECONDS)
        live.update(shown(root), refresh=True)
  except KeyboardInterrupt:
    return 0


def shown(root: Path) -> Group:
  """A table of the runs below `root`, running ones first; then why runs have failed."""
  found, damaged = [], []
  for run in find(root):
    try:
      found.append((str(run.path.relative_to(root)), looked_at(run)))
    except ValueError as error:
      damaged.append(str(error))
  found.sort(key=lambda row: (STATES.index(row[1].state), row[0]))
  counts = Counter(one.state for _, one in found)
  states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
  table = Table(box=None, header_style="bold", pad_edge=False)
  table.add_column("run", overflow="fold")
  table.add_column("state")
  for name in ("epoch", "step", "images/s"):
    table.add_column(name, justify="right", no_wrap=True)
  table.add_column("best test accuracy, last evaluation")
  for name in ("time left", "evaluated"):
    table.add_column(name, justify="right", no_wrap=True)
  for name, one in found:
    table.add_row(name, Text(one.state, STYLES[one.state]), *cells(one))
  failures = [f"failed: {name}: {one.message}" for name, one in found if one.state == FAILED]
  title = f"{root}: {len(found)} run{'s' * (len(found) != 1)}" + f" ({states})" * bool(states)
  return Group(Text(title), table, *map(Text, failures + damaged))


def looked_at(run: Run) -> Status:
  """The `Status` of a run; that of a finished run is read only once."""
  try:
    written = run.path, (run.path / RESULT).stat().st_mtime_ns
  except FileNotFoundError:
    return status(run)
  if written in _finished:
    return _finished[written]
  one = status(run)
  if one.state == FINISHED:  # not while a process is about to train it again
    _finished[written] = one
  return one


_finished: dict[tuple[Path, int], Status] = {}  # by the run's folder and when it was written


def cells(one: Status) -> tuple[str, ...]:
  """A row of the table, from the epoch on."""
  speed = one.images_per_second
  return (
    f"{one.epoch:g}/{one.epochs or '?'}",
    f"{one.step:,}/{one.steps:,}" if one.steps else "",
    f"{speed:,.0f}" if speed else "",
    "" if one.accuracy is None else f"{one.accuracy:.4f} {one.reader}",
    "" if one.left is None or one.state == FINISHED else clock(one.left),
    f"{clock(one.age)} ago" if one.age is not None else "",
  )
