"""Tables of many runs: mean and spread over seeds, paired differences, the paper's numbers.

`sections` makes them; `markdown`, `latex` and `csv` write them, and `report.page` shows them.
"""

import csv as csv_format
import io
import re
import statistics as plain_statistics
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from okdph_jax.errors import nearest
from okdph_jax.intervals import interval
from okdph_jax.report import paper, statistics
from okdph_jax.report.runs import Group, Row, Trial, grouped, missing
from okdph_jax.report.statistics import MEASURES, accuracies, spread
from okdph_jax.status import FAILED, status

NOTES = """\
Test accuracy in %: mean ± standard deviation (ddof = 1) over n runs, which differ in their seed
or draw of the images; a single run has no spread. **Bold**: better than every other row of the
table, by a paired difference whose 95 % t confidence interval excludes zero.

*mean of students*: over the networks or branches that a run trains, without averages and
ensembles of them. Nothing in this column is selected on the test set, so compare methods by it;
for methods whose purpose is an average (mean_teacher, pcl, swa, ema), see its row in the table
of single networks. *best single network on test*: the most accurate of a run's single networks,
including averages such as the hybrid, a teacher or SWA's network. It is biased upwards,
more so for methods with many networks. *best single network and epoch on test*: also the best
of all evaluations.

*best on test, as the paper counts*: the highest accuracy over all evaluations and over the
networks that the authors' release reports. For ONE, OKDDip and FFL these include an ensemble or
a fused head, which is several networks and is named if it is the highest; for PCL they are only
the averaged branches. *paper*: the accuracy in arXiv:2303.14666, for the same hyper-parameters,
with the paper's views in brackets if the run has others. It is a mean of five runs, each the
highest of about 300 evaluations.

*(release)* after a method: with the options of the authors' released code, which computes some
methods differently from their papers (`configs/release.py`)."""

DIFFERENCES = (
  "Difference to {baseline}, in percentage points, over pairs of runs with the same seed or, "
  "if there are several, the same draw of the images; in brackets its 95 % t confidence "
  "interval, which needs at least two pairs and is not corrected for the number of rows. "
  "**Bold**: the interval excludes zero."
)

HEAD_NOTES = """\
Test accuracy in % after the last epoch, mean ± standard deviation over n runs. *mean of
students*: over the networks or branches that a run trains; by this the rows are ordered.
*difference*: of this mean, over pairs of runs with the same seed or draw of the images, in
brackets its 95 % t confidence interval; bold where it leaves out zero. *best single network*:
the highest of a run's single networks on the test set, averages such as the hybrid or a teacher
included. *paper*: the number in arXiv:2303.14666 for the same hyper-parameters, the highest of
about 300 evaluations on the test set, in brackets the views it was measured with where the run
has others. *best on test, as the paper counts*: what to compare it with, the highest of all
evaluations of the networks that the authors' release reports."""

COUNTED = "best on test, as the paper counts"

# The names of `MEASURES` in tables.csv, which programs rely on.
CSV_MEASURES = {
  "students": "last",
  "last": "last",
  "chosen": "chosen on validation",
  "best": "best on test",
}

# Columns that are aligned to the left.
WORDS = ("method", "views", "reader", "run", "data", "network", "state", "why")


class Cell(NamedTuple):
  """One cell: its text, the runs it is computed from, and the number to sort it by."""

  text: str
  trials: Sequence[Trial] = ()
  order: float | None = None  # None: sorted by its text
  bold: bool = False


class Table(NamedTuple):
  """Rows of cells with a caption, without columns that are empty in every row."""

  caption: str
  columns: list[str]
  rows: list[list[Cell]]


class Section(NamedTuple):
  """The tables of one group of runs."""

  group: Group
  rows: list[Row]  # of finished runs
  everything: list[Row]  # of all runs
  tables: list[Table]
  baseline: str | None  # the label of the row that others are compared with


def sections(trials: Iterable[Trial], baseline: str | None = None) -> list[Section]:
  """The tables of each group of runs. Runs that are not finished only name a row.

  baseline: the label of a row, or its method if only one row has it.

  Raises:
    ValueError: no group has such a row, or a group has several.
  """
  found = []
  for group, everything in grouped(trials):
    finished = [(label, [t for t in row if t.result]) for label, row in everything]
    rows = [row for row in finished if row[1]]
    base = _baseline(group, rows, baseline) if baseline else None
    tables = [_summary(rows)]
    if base:
      tables.append(_differences(rows, base))
    tables.append(_readers("Single networks:", rows, single=True))
    caption = "Ensembles and fused heads, each of them more than one network:"
    tables.append(_readers(caption, rows, single=False))
    tables = [table for table in tables if table.rows]
    found.append(Section(group, rows, everything, tables, base))
  if baseline and not any(section.baseline for section in found):
    raise _no_row(baseline, [row for section in found for row in section.rows])
  return found


def _no_row(baseline, rows):
  known = dict.fromkeys(label for label, _ in rows)
  there = f"the rows are {'; '.join(known)}" if known else "no run is finished yet"
  return ValueError(f"--baseline={baseline}: no such row{nearest(baseline, known)} ({there})")


def _baseline(group, rows, asked):
  named = [label for label, _ in rows if asked in (label, label.partition(", ")[0])]
  if asked in named:
    return asked
  if len(named) > 1:
    raise ValueError(
      f"--baseline={asked}: {group.title} has several such rows; name one: {'; '.join(named)}"
    )
  return named[0] if named else None


def overview(found: Sequence[Section]) -> list[Table]:
  """For each dataset with several networks: a row per method, a column per network."""
  tables = []
  datasets = dict.fromkeys(section.group.data for section in found)
  for data in datasets:
    across = [section for section in found if section.group.data == data]
    if len(across) < 2:
      continue
    names = sorted({label for section in across for label, _ in section.rows})
    rows: list[dict[str, Cell]] = [{"method": Cell(name)} for name in names]
    for section in across:
      there, clear = dict(section.rows), statistics.clear_best(section.rows, "students")
      for name, row in zip(names, rows, strict=True):
        trials = there.get(name, [])
        row[section.group.network] = _accuracy(trials, "students", bold=name == clear)
    caption = f"{data}: mean of students, last epoch, test accuracy in %"
    tables.append(_table(caption, rows))
  return tables


def unfinished(trials: Iterable[Trial]) -> Table:
  """The runs that are not finished: how far they are, and why they stopped if they failed."""
  rows: list[dict[str, Cell]] = []
  for trial in trials:
    if trial.result or not trial.run:
      continue
    now = status(trial.run)
    done = now.epoch / trial.config["epochs"]
    so_far = "" if now.accuracy is None else f"{100 * now.accuracy:.2f} ({now.reader})"
    rows.append(
      {
        "run": Cell(trial.name, [trial]),
        "state": Cell(now.state),
        "epochs": Cell(f"{now.epoch:g} of {trial.config['epochs']} ({done:.0%})", order=done),
        "test accuracy so far": Cell(so_far, order=now.accuracy),
        "why": Cell(now.message if now.state == FAILED else ""),
      }
    )
  return _table("Runs that are not finished:", rows)


# The tables of a group.


def _summary(rows):
  clear = {measure: statistics.clear_best(rows, measure) for measure in MEASURES}
  table = []
  for label, trials in rows:
    runs = [trial.result for trial in trials]
    row = {
      "method": Cell(label, trials),
      "views": Cell(_views(trials[0])),
      "students": _number(runs[0]["students"]),
      "n": _number(len(runs)),
    }
    for measure, name in MEASURES.items():
      row[name] = _accuracy(trials, measure, bold=label == clear[measure])
    row |= {
      COUNTED: _as_the_paper_counts(trials),
      "paper": _paper(trials),
      "epochs": _same(run["epochs"] for run in runs),
      "evaluations": _same(run["evaluations"] for run in runs),
      "minutes": _mean(trials, [run["seconds"] / 60 for run in runs]),
      "parameters": _same(f"{run['parameters']:,}" for run in runs),
    }
    table.append(row)
  return _table("", table)


def _differences(rows, baseline):
  base, table = dict(rows)[baseline], []
  for label, trials in rows:
    if label == baseline:
      continue
    found = {m: statistics.difference(trials, base, m) for m in MEASURES}
    row = {"method": Cell(label, trials), "pairs": Cell("")}
    for measure, name in MEASURES.items():
      if difference := found[measure]:
        row["pairs"] = _number(difference.n)
      row[name] = _difference(found[measure], [*trials, *base])
    table.append(row)
  caption = textwrap.fill(DIFFERENCES.format(baseline=baseline), 96, break_on_hyphens=False)
  return _table(caption, table)


def _difference(difference, trials):
  if difference is None:
    return Cell("")
  text = f"{100 * difference.mean:+.2f}"
  if difference.low is not None:
    text += f" [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
  return Cell(text, trials, difference.mean, difference.clear)


def _readers(caption, rows, *, single):
  table = []
  for label, trials in rows:
    for name, reader in trials[0].result["readers"].items():
      if reader["single"] != single:
        continue
      having = [trial for trial in trials if name in trial.result["readers"]]
      seeds = [trial.result["readers"][name] for trial in having]
      chosen = [seed["at_best_validation"] for seed in seeds]
      table.append(
        {
          "method": Cell(label, having),
          "reader": Cell(name),
          "n": _number(len(seeds)),
          "last": _spread(having, [seed["last"] for seed in seeds]),
          "best": _spread(having, [seed["best"] for seed in seeds]),
          "chosen on validation": _spread(having, [] if None in chosen else chosen),
          "evaluations": _same(trial.result["evaluations"] for trial in having),
        }
      )
  return _table(caption, table)


def _as_the_paper_counts(trials):
  """The spread of the best of the readers that count, and which of them are no single one."""
  values, several = _counted(trials)
  named = f" ({', '.join(sorted(several))})" if several else ""
  cell = _spread(trials, values)
  return cell._replace(text=cell.text + named)


def _counted(trials):
  """(each run's best of the readers that count, the names of those that are no single one)."""
  values, several = [], set()
  for trial in trials:
    readers = trial.result["readers"]
    counted = [name for name in readers if paper.counts(trial.result["method"], name)]
    if not counted:
      return [], set()
    best = max(counted, key=lambda name, of=readers: of[name]["best"])
    values.append(readers[best]["best"])
    several |= set() if readers[best]["single"] else {best}
  return values, several


def _paper(trials):
  """The number of the paper that describes every one of these runs, if there is one."""
  cell, *others = (
    None if trial.config.get("extended_from_epochs") else paper.cell(trial.result["config"])
    for trial in trials
  )
  if cell is None or any(other != cell for other in others):
    return Cell("")
  views = {paper.without_noise(view) for view in trials[0].config["views"]}
  other = f" ({', '.join(cell.views)})" if views != set(cell.views) else ""
  return Cell(f"{cell}{other}", order=cell.accuracy / 100)


def _views(trial):
  """The distinct ones: what a network may see decides as much as its method."""
  return ", ".join(dict.fromkeys(trial.config["views"]))


def _accuracy(trials, measure, *, bold=False):
  values = accuracies(trials, measure)
  return _spread(trials, values if len(values) == len(trials) else [])._replace(bold=bold)


def _spread(trials, fractions):
  mean = plain_statistics.mean(fractions) if fractions else None
  return Cell(spread(fractions), trials if fractions else (), mean)


def _mean(trials, values):
  mean = plain_statistics.mean(values)
  return Cell(f"{mean:.3g}", trials, mean)


def _number(value):
  return Cell(str(value), order=value)


def _same(values):
  texts = list(dict.fromkeys(map(str, values)))
  number = texts[0].replace(",", "")
  return Cell(" / ".join(texts), order=float(number) if number.isdigit() else None)


def _table(caption: str, rows: list[dict[str, Cell]]) -> Table:
  columns = [name for name in (rows[0] if rows else ()) if any(row[name].text for row in rows)]
  return Table(caption, columns, [[row[name] for name in columns] for row in rows])


# As text.


def render(found: Sequence[Section]) -> str:
  """Markdown, a section for each group: the best single networks and then every reader."""
  parts = [NOTES]
  for table in overview(found):
    parts += [f"### {table.caption}", markdown(table)]
  for section in found:
    parts += [f"### {section.group.title}"] * bool(section.tables)
    for table in section.tables:
      parts += [part for part in (table.caption, markdown(table)) if part]
  return "\n\n".join(parts) + "\n"


def head(trials: Iterable[Trial], baseline: str | None = None) -> str:
  """Markdown, one short table for each group, the most accurate method first.

  baseline: as in `sections`, which says what it raises; a column has the differences to it.
  """
  parts = [HEAD_NOTES]
  groups = list(grouped((t for t in trials if t.result), hidden={"views"}))
  bases = [baseline and _baseline(group, rows, baseline) for group, rows in groups]
  if baseline and not any(bases):
    raise _no_row(baseline, [row for _, rows in groups for row in rows])
  for (group, rows), base in zip(groups, bases, strict=True):
    parts += [f"### {group.title}", markdown(_head(rows, base))]
  return "\n\n".join(parts) + "\n"


def _head(rows, baseline):
  """Method, views, accuracy and the paper's: what decides which one to choose."""
  base, table = dict(rows).get(baseline), []
  for label, trials in sorted(rows, key=statistics.typical, reverse=True):
    compared = _difference(
      statistics.difference(trials, base, "students") if base else None, trials
    )
    published = _paper(trials)
    table.append(
      {
        "method": Cell(label, trials),
        "views": Cell(_views(trials[0])),
        "networks or branches": _number(trials[0].result["students"]),
        "n": _number(len(trials)),
        "mean of students": _accuracy(trials, "students"),
        "difference": Cell("baseline") if label == baseline else compared,
        "best single network": _accuracy(trials, "last"),
        COUNTED: _as_the_paper_counts(trials) if published.text else Cell(""),
        "paper": published,
      }
    )
  return _table("", table)


def gaps(trials: Sequence[Trial]) -> str:
  """Markdown: what is not finished, and what is missing; empty where nothing is."""
  parts = []
  if (table := unfinished(trials)).rows:
    parts += [table.caption, markdown(table)]
  if absent := missing(trials):
    parts += ["Missing from the grid:", "\n".join(f"- {line}" for line in absent)]
  return "".join(f"\n{part}\n" for part in parts)


def markdown(table: Table) -> str:
  """A Markdown table."""

  def text(cell):
    plain = cell.text.replace("|", "\\|")
    return f"**{plain}**" if cell.bold else plain

  rows = [[text(cell) for cell in row] for row in table.rows]
  align = ["left" if column in WORDS else "right" for column in table.columns]
  return tabulate(rows, table.columns, "pipe", colalign=align, disable_numparse=True)


def latex(found: Sequence[Section]) -> str:
  """All tables for `\\input`, each a `table` for the package booktabs."""
  tables = overview(found)
  for section in found:
    named = [t._replace(caption=f"{section.group.title}. {t.caption}") for t in section.tables]
    tables += named
  head = "% Needs \\usepackage{booktabs}. Made by `okdph report`.\n"
  return head + "\n".join(map(_latex, tables))


def _latex(table):
  align = "".join("l" if column in WORDS else "r" for column in table.columns)

  def line(texts):
    return "    " + " & ".join(texts) + " \\\\"

  def text(cell):
    return f"\\textbf{{{escaped(cell.text)}}}" if cell.bold else escaped(cell.text)

  caption = escaped(" ".join(table.caption.split())).rstrip(": ")
  caption = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", caption)
  lines = [
    "\\begin{table}",
    "  \\centering",
    f"  \\caption{{{caption}}}",
    f"  \\begin{{tabular}}{{{align}}}",
    "    \\toprule",
    line(map(escaped, table.columns)),
    "    \\midrule",
    *(line(map(text, row)) for row in table.rows),
    "    \\bottomrule",
    "  \\end{tabular}",
    "\\end{table}",
  ]
  return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
  """Text as LaTeX wants it."""
  special = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "|": "\\textbar{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "±": "$\\pm$",
  }
  text = "".join(special.get(character, character) for character in text)
  return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


def csv(found: Sequence[Section]) -> str:
  """A line per experiment, reader and measure, for programs; accuracies in %, undefined empty.

  Two more readers stand for a whole run, and have the differences to the baseline: "mean of
  students", and "best single network", the highest on the test set or chosen on validation.
  A third, "as the paper counts", has the paper's number.
  """
  out = io.StringIO()
  lines = [line for section in found for line in _csv_lines(section)]
  writer = csv_format.DictWriter(out, list(lines[0]) if lines else [], lineterminator="\n")
  writer.writeheader()
  writer.writerows(lines)
  return out.getvalue()


def _csv_lines(section):
  base = dict(section.rows).get(section.baseline)
  for label, trials in section.rows:
    for measure in MEASURES:
      reader = "mean of students" if measure == "students" else "best single network"
      values = accuracies(trials, measure)
      found = statistics.difference(trials, base, measure) if base else None
      yield _csv_line(section, label, trials, reader, measure, values, found)
    values, several = _counted(trials)
    line = _csv_line(section, label, trials, "as the paper counts", "best", values)
    yield line | {"single": not several}
    for reader in trials[0].result["readers"]:
      for measure in ("last", "chosen", "best"):
        key = "at_best_validation" if measure == "chosen" else measure
        there = (trial.result["readers"].get(reader, {}).get(key) for trial in trials)
        values = [value for value in there if value is not None]
        yield _csv_line(section, label, trials, reader, measure, values)


def _csv_line(
  section, label, trials, reader, measure, values, difference=None
) -> dict[str, Any]:
  result = trials[0].result
  single = result["readers"].get(reader, {"single": True})["single"]
  ours = interval(values) if values else None
  published = _paper(trials) if reader == "as the paper counts" else None

  def percent(value):
    return "" if value is None else f"{100 * value:.4f}"

  return section.group._asdict() | {
    "method": label,
    "views": _views(trials[0]),
    "students": result["students"],
    "reader": reader,
    "single": single,
    "measure": CSV_MEASURES[measure],
    "n": len(values),
    "mean": percent(ours and ours.mean),
    "sd": percent(plain_statistics.stdev(values) if len(values) > 1 else None),
    "low": percent(ours and ours.low),
    "high": percent(ours and ours.high),
    "paper": percent(published and published.order),
    "baseline": section.baseline if difference else "",
    "pairs": difference.n if difference else "",
    "difference": percent(difference and difference.mean),
    "difference_low": percent(difference and difference.low),
    "difference_high": percent(difference and difference.high),
    "epochs": result["epochs"],
    "parameters": result["parameters"],
    "parameters_deployed": result.get("parameters_deployed", ""),
    "flops_per_image": result.get("flops_per_image") or "",
    "seconds": f"{plain_statistics.mean(trial.result['seconds'] for trial in trials):.1f}",
  }
