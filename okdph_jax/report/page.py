"""`report.html`: a page in a single file, which opens from disk and needs no network.

Its template, style and script are in `template/`. plotly.js comes from the package plotly and
is compressed in the page (1.9 MB instead of 4.7); the browser decompresses it.
"""

import base64
import gzip
import html
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from okdph_jax.report import charts, tables
from okdph_jax.report.charts import Chart
from okdph_jax.report.runs import Trial, grouped, missing
from okdph_jax.report.statistics import MEASURES
from okdph_jax.report.tables import Cell, Section, Table
from okdph_jax.status import FINISHED, status

MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def render(
  trials: Sequence[Trial],
  sections: Sequence[Section],
  *,
  title: str,
  analyses: Iterable[tuple[str, Mapping[str, Any], Path]] = (),
) -> str:
  """The page of these runs and analyses, a function of their files."""
  import jinja2

  index = {trial: i for i, trial in enumerate(trials)}
  labels = {trial: label for _, rows in grouped(trials) for label, row in rows for trial in row}
  drawn: list[Chart] = []

  def placed(found):
    """The charts with their numbers on the page."""
    start = len(drawn)
    drawn.extend(found)
    return list(enumerate(found, start))

  datasets = []
  for data in dict.fromkeys(section.group.data for section in sections):
    there = [section for section in sections if section.group.data == data]
    across = charts.cost(there, index)
    parts = [(section, placed(charts.of_section(section, index))) for section in there]
    datasets.append((data, parts, placed([across] if across else [])))

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("okdph_jax.report", "template"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template("page.html").render(
    title=title,
    version=importlib.metadata.version("okdph_jax"),
    finished=sum(trial.result is not None for trial in trials),
    trials=trials,
    overview=tables.overview(sections),
    datasets=datasets,
    runs=_runs(trials, labels),
    unfinished=tables.unfinished(trials),
    missing=missing(trials),
    analyses=_analyses(analyses),
    notes=_html(tables.NOTES),
    left=tables.WORDS,
    index=lambda cell: " ".join(str(index[trial]) for trial in dict.fromkeys(cell.trials)),
    as_html=_html,
    charts=_json([_figure(chart) for chart in drawn]),
    details=_json([_details(trial, labels[trial]) for trial in trials]),
    plotly=_plotly(),
  )


def _runs(trials, labels) -> Table:
  """A row for each run."""
  rows = []
  for trial in trials:
    readers = (trial.result or {}).get("readers", {})
    single = {name: reader["last"] for name, reader in readers.items() if reader["single"]}
    best = max(single, key=lambda name: single[name], default="")
    last = single.get(best)
    rows.append(
      [
        Cell(trial.name, [trial]),
        Cell(labels[trial]),
        Cell(trial.config["data"]["name"]),
        Cell(trial.config["network"]),
        Cell(str(trial.seed), order=trial.seed),
        Cell(status(trial.run).state if trial.run else FINISHED),
        Cell("" if last is None else f"{100 * last:.2f}", [trial], last),
        Cell(best),
      ]
    )
  columns = ["run", "method", "data", "network", "seed", "state", MEASURES["last"], "reader"]
  return Table("", columns, rows)


def _details(trial: Trial, label: str) -> dict[str, Any]:
  """What the page shows about a run after a click on it."""
  result = trial.result or {}
  readers = result.get("readers", {}).items()
  return {
    "name": trial.name,
    "label": label,
    "seed": trial.seed,
    "command": trial.command,
    "readers": [
      [name, *(_percent(reader[key]) for key in ("last", "best", "at_best_validation"))]
      for name, reader in readers
    ],
    "environment": trial.record.get("environment"),
    "config": dict(trial.config),
  }


def _percent(fraction):
  return "" if fraction is None else f"{100 * fraction:.2f}"


def _figure(chart: Chart) -> dict[str, Any]:
  return {
    "traces": chart.traces,
    "layout": chart.layout,
    "controls": [
      {
        "name": control.name,
        "several": control.several,
        "options": [option._asdict() for option in control.options],
      }
      for control in chart.controls
    ],
  }


def _analyses(found: Iterable[tuple[str, Mapping[str, Any], Path]]) -> list[dict[str, Any]]:
  """Figures of `okdph analysis`, each with its picture as a data URI."""
  figures = []
  for name, content, picture in found:
    data = base64.b64encode(picture.read_bytes()).decode()
    runs = dict.fromkeys(run.get("name", "") for run in content.get("runs", []))
    figures.append(
      {
        "name": name.replace("_", " "),
        "picture": f"data:{MIME[picture.suffix]};base64,{data}",
        "about": "; ".join(filter(None, [", ".join(runs), *content.get("notes", [])])),
      }
    )
  return figures


def _html(text: str) -> str:
  """The paragraphs and emphasis of our notes, which are Markdown, as HTML."""
  text = html.escape(text.strip(), quote=False)
  text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
  text = re.sub(r"\*(.+?)\*", r"<em>\1</em>", text)
  text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
  return "".join(f"<p>{part}</p>" for part in text.split("\n\n"))


def _json(content: Any) -> str:
  """JSON that may stand in a script element."""
  text = json.dumps(content, allow_nan=False, separators=(",", ":"))
  return text.replace("<", "\\u003c")


def _plotly() -> str:
  """plotly.js, compressed, in base64."""
  from plotly.offline import get_plotlyjs

  return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
