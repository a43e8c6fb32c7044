"""The interactive charts of the page, as plain data for plotly.js.

A chart's traces carry `meta`, values of the chart's controls: the page shows the traces whose
values are all chosen. Colours stand for methods, dashes for kinds of networks.
"""

import itertools
import json
import math
import re
import statistics as plain_statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from okdph_jax.intervals import interval
from okdph_jax.report import readers, statistics
from okdph_jax.report.runs import Row, Trial, variant
from okdph_jax.report.statistics import MEASURES, accuracies
from okdph_jax.report.tables import Section

# Okabe and Ito's palette, for all common kinds of colour vision, without black and yellow: one
# is hard to see on a dark page, the other on a light one.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "cross")
DASHES = dict(zip(readers.KINDS, ("solid", "dash", "dot"), strict=True))
POINTS = 400  # at most so many in a curve

Numbers = Callable[[Trial], Mapping[float, float]]  # of a run: {epoch: value}


class Option(NamedTuple):
  """One value of a control."""

  value: str
  label: str
  colour: str = ""
  dash: str = ""
  chosen: bool = True
  layout: Mapping[str, Any] = {}  # changes of the chart's layout if it is chosen


class Control(NamedTuple):
  """A choice on the page: of several options, or of one."""

  name: str
  label: str
  options: list[Option]
  several: bool = True


class Chart(NamedTuple):
  """A figure of plotly.js and its controls."""

  title: str
  about: str
  traces: list[dict[str, Any]]
  layout: dict[str, Any]
  controls: list[Control]
  wide: bool = False  # spans all columns of the page


class Style:
  """Colours and symbols of labels, which depend only on the set of labels."""

  def __init__(self, labels: Iterable[str]):
    self._index = {label: i for i, label in enumerate(sorted(set(labels)))}

  def colour(self, label: str) -> str:
    return COLOURS[self._index[label] % len(COLOURS)]

  def symbol(self, label: str) -> str:
    return SYMBOLS[self._index[label] // len(COLOURS) % len(SYMBOLS)]

  def options(self, labels: Iterable[str]) -> list[Option]:
    """The options of a control of methods."""
    return [Option(label, label, self.colour(label)) for label in labels]


def of_section(section: Section, index: Mapping[Trial, int]) -> list[Chart]:
  """The charts of one group. index: the number of each run on the page."""
  style = Style(label for label, _ in section.everything)
  charts = [
    standing(section.rows, style, index),
    against(section, style, index),
    curves(section.everything, style, index),
    *sensitivity(section.rows, index),
  ]
  return [chart for chart in charts if chart and chart.traces]


# Accuracy and differences, a row per experiment.


def standing(rows: Sequence[Row], style: Style, index: Mapping[Trial, int]) -> Chart | None:
  """Each experiment's mean, interval and single runs, the most accurate on top."""
  if not rows:
    return None
  rows = sorted(rows, key=statistics.typical)
  traces = []
  for measure, (label, trials) in itertools.product(MEASURES, rows):
    if found := statistics.of_all(trials, measure):
      values = accuracies(trials, measure)
      traces.append(_ticks(values, label, style, trials, index, measure))
      traces.append(_dot(found, label, style, trials, index, measure))
  for label, trials in rows:
    several = [statistics.highest(trial, "last", single=False) for trial in trials]
    if known := [value for value in several if value is not None]:
      mean = interval(known)._replace(high=None)
      for measure in ("students", "last"):  # both are of the last epoch
        trace = _dot(mean, label, style, trials, index, measure)
        trace["marker"] |= {"symbol": "diamond-open"}
        trace["hovertemplate"] = "%{x:.2f} % ensemble or fused head<extra></extra>"
        traces.append(trace)
  return Chart(
    "Accuracy",
    "Test accuracy: mean with its 95 % interval, and each run as a tick. Open diamonds are "
    "ensembles or fused heads after the last epoch, more than one network.",
    traces,
    _rows_layout(rows, "test accuracy [%]"),
    [_measures(traces)],
  )


def against(section: Section, style: Style, index: Mapping[Trial, int]) -> Chart | None:
  """Paired differences to the baseline."""
  base = dict(section.rows).get(section.baseline or "")
  rows = [row for row in section.rows if row[0] != section.baseline][::-1]
  if not base or not rows:
    return None
  traces = []
  for measure in MEASURES:
    for label, trials in rows:
      found = statistics.difference(trials, base, measure)
      if found:
        dot = _dot(found, label, style, [*trials, *base], index, measure)
        dot["hovertemplate"] = "%{x:+.2f} points, " + f"{found.n} pairs<extra></extra>"
        traces.append(dot)
  layout = _rows_layout(rows, "difference to the baseline [points]")
  layout["xaxis"] |= {"zeroline": True, "rangemode": "tozero"}
  return Chart(
    f"Difference to {section.baseline}",
    "Paired by seed, or by the draw of the data: mean and 95 % t interval.",
    traces,
    layout,
    [_measures(traces)],
  )


def _ticks(values, label, style, trials, index, measure):
  """Every run of an experiment."""
  return {
    "x": _percent(values),
    "y": [label] * len(values),
    "mode": "markers",
    "marker": {"symbol": "line-ns-open", "size": 12, "color": style.colour(label)},
    "hovertemplate": "%{x:.2f} %, %{text}<extra></extra>",
    "text": [f"seed {trial.seed}" for trial in trials],
    "customdata": [[index[trial]] for trial in trials],
    "meta": {"measure": measure},
  }


def _dot(found, label, style, trials, index, measure):
  """The mean of an experiment, with its interval."""
  return {
    "x": _percent([found.mean]),
    "y": [label],
    "mode": "markers",
    "marker": _marker(label, style),
    "error_x": _bar([found]),
    "hovertemplate": f"%{{x:.2f}} %, n = {found.n}<extra></extra>",
    "customdata": [[index[trial] for trial in trials]],
    "meta": {"measure": measure},
  }


def _marker(label, style):
  return {"symbol": style.symbol(label), "size": 10, "color": style.colour(label)}


def _bar(intervals):
  """Error bars in per cent, hidden where no interval is known."""
  halves = [found.half for found in intervals]
  return {"array": _percent([h or 0 for h in halves]), "visible": any(halves), "thickness": 1.5}


def _measures(traces):
  there = [m for m in MEASURES if any(trace["meta"]["measure"] == m for trace in traces)]
  options = [
    Option(m, name, chosen=m == there[0]) for m, name in MEASURES.items() if m in there
  ]
  return Control("measure", "accuracy", options, several=False)


def _rows_layout(rows, title):
  texts = [_wrapped(label) for label, _ in rows]
  tallest = max(text.count("<br>") + 1 for text in texts)
  return {
    "height": 110 + (16 + 15 * tallest) * len(rows),
    "xaxis": {"title": {"text": title}, "zeroline": False},
    "yaxis": {
      "automargin": True,
      "categoryorder": "array",
      "categoryarray": [label for label, _ in rows],
      "ticktext": texts,
      "tickvals": [label for label, _ in rows],
      "fixedrange": True,
      "range": [-0.6, len(rows) - 0.4],
    },
  }


def _wrapped(label, width=28):
  """A label in lines, broken between its settings."""
  lines = [""]
  for part in label.split(", "):
    if lines[-1] and len(lines[-1]) + len(part) > width:
      lines.append("")
    lines[-1] += part + ", "
  return "<br>".join(line.strip() for line in lines)[:-1]


# Curves.


def curves(rows: Sequence[Row], style: Style, index: Mapping[Trial, int]) -> Chart | None:
  """Every measured quantity over the epochs, means and bands over seeds."""
  traces, views = [], []
  for (split, measure), title, scale in _measured(rows):
    name = f"{split} {measure}"
    views.append(Option(name, name, layout={"yaxis.title.text": title}))
    for label, trials in rows:
      for reader in _readers(trials, split, measure):
        numbers = _evaluated(split, measure, reader, scale)
        meta = {"quantity": name, "method": label, "reader": reader}
        dash = DASHES[readers.kind(reader)]
        traces += _curve(label, trials, numbers, style, index, meta, reader, dash)
  for words, lines_of in (("", "lines"), (", single steps", "training")):
    for loss in _names(x["losses"] for t in _all(rows) for x in getattr(t, lines_of)):
      name = f"training {loss.replace('_', ' ')}{words}"
      views.append(Option(name, name, layout={"yaxis.title.text": name + unit(loss)}))
      for label, trials in rows:
        meta = {"quantity": name, "method": label}
        numbers = _losses(lines_of, loss)
        traces += _curve(label, trials, numbers, style, index, meta, name)
  if not traces:
    return None
  views = [view._replace(chosen=not i) for i, view in enumerate(views)]
  names = dict.fromkeys(t["meta"]["reader"] for t in traces if "reader" in t["meta"])
  first = {readers.kind(name): name for name in reversed(names)}.values()
  choice = [
    Option(name, name, dash=DASHES[readers.kind(name)], chosen=name in first) for name in names
  ]
  labels = dict.fromkeys(trace["meta"]["method"] for trace in traces)
  last = max(line["epoch"] for trial in _all(rows) for line in trial.lines or trial.training)
  return Chart(
    "Curves",
    "Mean over seeds, the band is ± one standard deviation; a run that is not finished has a "
    "thin line of its own. Solid: networks; dashed: averaged networks (hybrid, centre, SWA, "
    "EMA); dotted: several networks together. Vertical lines: the learning rate drops.",
    traces,
    {
      "height": 460,
      "xaxis": {"title": {"text": "epoch"}, "zeroline": False}
      | ({"dtick": 1} if last <= 12 else {}),
      "yaxis": {"title": {"text": views[0].layout["yaxis.title.text"]}, "zeroline": False},
      "shapes": _drops(_all(rows)),
      "hovermode": "closest",
    },
    [
      Control("quantity", "quantity", views, several=False),
      Control("method", "methods", style.options(labels)),
      Control("reader", "networks", choice),
    ],
    wide=True,
  )


def unit(metric: str) -> str:
  """The unit of a training metric, as an axis has it after the name."""
  if metric.endswith("cosine"):
    return ""
  return " [fraction]" if metric.endswith("accuracy") else " [nats]"


def _measured(rows):
  """Yields ((split, measure), title of the axis, factor) of what was evaluated."""
  for measure, title, scale in (("accuracy", "[%]", 100), ("cross_entropy", "[nats]", 1)):
    for split in _names(line.get(measure, {}) for t in _all(rows) for line in t.lines):
      words = f"{split} {measure.replace('_', '-')} {title}"
      yield (split, measure), words, scale


def _all(rows):
  return [trial for _, trials in rows for trial in trials]


def _names(dicts: Iterable[Mapping[str, Any]]) -> list[str]:
  return list(dict.fromkeys(itertools.chain.from_iterable(dicts)))


def _readers(trials, split, measure):
  return _names(line.get(measure, {}).get(split, {}) for t in trials for line in t.lines)


def _evaluated(split, measure, reader, scale) -> Numbers:
  def numbers(trial):
    there = ((x["epoch"], x.get(measure, {}).get(split, {}).get(reader)) for x in trial.lines)
    return {epoch: scale * value for epoch, value in there if value is not None}

  return numbers


def _losses(lines_of, loss) -> Numbers:
  def numbers(trial):
    there = ((x["epoch"], x["losses"].get(loss)) for x in getattr(trial, lines_of))
    return {epoch: value for epoch, value in there if value is not None}

  return numbers


def _curve(label, trials, numbers, style, index, meta, name, dash="solid"):
  """The mean over finished runs with its band, and a thin line per run that is not."""
  finished = [trial for trial in trials if trial.result]
  found = [(finished, "", 2.2)]
  found += [([t], f", seed {t.seed}, not finished", 1) for t in trials if not t.result]
  for members, words, width in found:
    values = [series for trial in members if (series := numbers(trial))]
    if not values:
      continue
    x, means, spreads = _over_seeds(values)
    if not x:  # each of other steps
      continue
    n = f" (mean of {len(values)})" if len(values) > 1 else ""
    if len(values) > 1:
      yield _band(x, means, spreads, style.colour(label), meta)
    yield {
      "x": x,
      "y": [_short(mean) for mean in means],
      "mode": "lines" if len(x) > 40 else "lines+markers",
      "line": {"color": style.colour(label), "dash": dash, "width": width},
      "marker": {"symbol": style.symbol(label), "size": 6, "color": style.colour(label)},
      "hovertemplate": f"epoch %{{x:.5~g}}: %{{y:.5~g}}<br>{label}{words}<br>{name}{n}"
      "<extra></extra>",
      "runs": [index[trial] for trial in members],
      "meta": meta,
    }


def _over_seeds(values: Sequence[Mapping[float, float]]):
  """(epochs in all series, means, standard deviations); long series are averaged in windows."""
  epochs = sorted(set.intersection(*(set(series) for series in values)))
  window = math.ceil(len(epochs) / POINTS) or 1
  parts = [epochs[i : i + window] for i in range(0, len(epochs), window)]
  points = [
    [plain_statistics.mean(series[epoch] for epoch in part) for series in values]
    for part in parts
  ]
  spreads = [plain_statistics.stdev(point) if len(point) > 1 else 0.0 for point in points]
  return [_short(part[-1]) for part in parts], [*map(plain_statistics.mean, points)], spreads


def _band(x, means, spreads, colour, meta):
  upper = [_short(m + s) for m, s in zip(means, spreads, strict=True)]
  lower = [_short(m - s) for m, s in zip(means, spreads, strict=True)]
  red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
  return {
    "x": [*x, *reversed(x)],
    "y": [*upper, *reversed(lower)],
    "mode": "lines",
    "fill": "toself",
    "fillcolor": f"rgba({red},{green},{blue},0.13)",
    "line": {"width": 0},
    "hoverinfo": "skip",
    "meta": meta,
  }


def _drops(trials):
  """A line at each epoch at which the learning rate of most runs drops."""
  counts = Counter(epoch for trial in trials for epoch in trial.milestones)
  line = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
  line |= {"line": {"color": "#7F7F7F", "width": 1, "dash": "longdash"}}
  return [
    line | {"x0": epoch, "x1": epoch}
    for epoch, count in counts.items()
    if 2 * count > len(trials)
  ]


# Cost.


def cost(sections: Sequence[Section], index: Mapping[Trial, int]) -> Chart | None:
  """Accuracy against cost, for all networks on the same data."""
  rows = [(s.group.network, *row) for s in sections for row in s.rows]
  style = Style(label for _, label, _ in rows)
  if len(rows) < 2:
    return None
  traces = [
    trace
    for name, (network, label, trials) in itertools.product(COSTS, rows)
    if (trace := _priced(name, network, label, trials, style, index))
  ]
  if not traces:
    return None
  there = list(dict.fromkeys(trace["meta"]["cost"] for trace in traces))
  options = [
    Option(name, name, chosen=name == there[0], layout={"xaxis.title.text": COSTS[name][0]})
    for name in there
  ]
  networks = dict.fromkeys(network for network, _, _ in rows)
  return Chart(
    "Accuracy against cost",
    "Test accuracy after the last epoch, mean of each run's students, with its 95 % interval.",
    traces,
    {
      "height": 420,
      "xaxis": {"title": {"text": COSTS[there[0]][0]}, "type": "log"},
      "yaxis": {"title": {"text": "test accuracy [%]"}, "zeroline": False},
    },
    [
      Control("cost", "cost", options, several=False),
      Control("method", "methods", style.options(dict.fromkeys(label for _, label, _ in rows))),
      Control("network", "networks", [Option(network, network) for network in networks]),
    ],
    wide=True,
  )


def _priced(name, network, label, trials, style, index):
  """The point of an experiment; None if its cost is not known."""
  there = (COSTS[name][1](trial) for trial in trials)
  amounts = [amount for amount in there if amount is not None]
  found = statistics.of_all(trials, "students")
  if not found or len(amounts) < len(trials):
    return None
  return {
    "x": [_short(plain_statistics.mean(amounts))],
    "y": _percent([found.mean]),
    "mode": "markers",
    "error_y": _bar([found]),
    "marker": _marker(label, style),
    "hovertemplate": f"{label}, {network}<br>%{{y:.2f}} %, %{{x:.4~s}}<extra></extra>",
    "customdata": [[index[trial] for trial in trials]],
    "meta": {"cost": name, "method": label, "network": network},
  }


def _result(name: str) -> Callable[[Any], float | None]:
  return lambda trial: trial.result.get(name)


def _whole_flops(trial):
  """FLOPs of the whole training, if the run recorded its number of images."""
  per_image = trial.result.get("flops_per_image")
  return per_image and trial.images and per_image * trial.images * trial.config["epochs"]


# Of finished runs, {name: (title of the axis, amount)}.
COSTS: dict[str, tuple[str, Callable[[Any], float | None]]] = {
  "parameters trained": ("parameters trained", _result("parameters")),
  "parameters deployed": ("parameters of one network", _result("parameters_deployed")),
  "FLOPs per image": ("FLOPs of a training step, per image", _result("flops_per_image")),
  "FLOPs of the training": ("FLOPs of the whole training", _whole_flops),
  "minutes": ("minutes", lambda trial: trial.result["seconds"] / 60),
}


# One hyper-parameter at a time.


def varied(
  rows: Sequence[Row],
) -> Iterator[tuple[str, list[tuple[str, list[tuple[Any, Row]]]]]]:
  """Yields (option, [(label of the fixed options, [(value, row), ...]), ...]).

  For each option in which rows differ while all other options are equal.
  """
  configs = [(dict(variant(trials[0].config)), (label, trials)) for label, trials in rows]
  for option in sorted({key for config, _ in configs for key in config}):
    together = defaultdict(list)
    for config, row in configs:
      if option in config and option not in ("method.name", "network", "wrappers", "views"):
        rest = tuple(sorted((k, v) for k, v in config.items() if k != option))
        together[rest].append((json.loads(config[option]), row))
    lines = [members for members in together.values() if len(members) > 1]
    if lines:
      name = option.removeprefix("method.")
      yield name, [(_fixed(members, name), _ascending(members)) for members in lines]


def _fixed(members, name):
  """The label of a line: that of its rows without the option that varies."""
  parts = re.split(r", (?=[\w.]+=)", members[0][1][0])
  return ", ".join(part for part in parts if not part.startswith(f"{name}="))


def _ascending(members):
  numeric = all(_is_number(value) for value, _ in members)
  return sorted(members, key=lambda m: m[0] if numeric else _natural(m[0]))


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _natural(value):
  """A sort key: "5 steps" < "200 steps" < "1 epoch"."""
  count, _, unit = str(value).partition(" ")
  return (unit.rstrip("s") != "step", unit, float(count) if count.isdigit() else 0, count)


def sensitivity(rows: Sequence[Row], index: Mapping[Trial, int]) -> Iterator[Chart]:
  """A chart for each option that varies while all others are equal."""
  for option, lines in varied(rows):
    numeric = all(_is_number(value) for _, members in lines for value, _ in members)
    style = Style(name for name, _ in lines)
    traces = [
      trace
      for measure, (name, members) in itertools.product(MEASURES, lines)
      if (trace := _line(option, name, members, measure, numeric, style, index))
    ]
    which = "" if len(lines) == 1 else ", a line for each setting of the others"
    controls = [_measures(traces)]
    controls += [Control("line", "lines", style.options(name for name, _ in lines))]
    yield Chart(
      f"Sensitivity to {option}" if numeric else f"Ablation of {option}",
      f"Runs that differ only in {option}{which}: test accuracy, mean and 95 % interval.",
      traces,
      {
        "height": 380,
        "xaxis": {"title": {"text": option}, "type": "linear" if numeric else "category"},
        "yaxis": {"title": {"text": "test accuracy [%]"}, "zeroline": False},
      },
      controls,
    )


def _line(option, name, members, measure, numeric, style, index):
  """The accuracies over the values of an option; None if one was not measured."""
  there = (statistics.of_all(trials, measure) for _, (_, trials) in members)
  found = [interval for interval in there if interval]
  if len(found) < len(members):
    return None
  return {
    "x": [value if numeric else str(value) for value, _ in members],
    "y": _percent([there.mean for there in found]),
    "mode": "lines+markers" if numeric else "markers",
    "error_y": _bar(found),
    "line": {"color": style.colour(name)},
    "marker": _marker(name, style),
    "hovertemplate": f"{name}, {option}=%{{x}}: %{{y:.2f}} %<extra></extra>",
    "customdata": [[index[trial] for trial in trials] for _, (_, trials) in members],
    "meta": {"measure": measure, "line": name},
  }


def _percent(fractions):
  return [_short(100 * fraction) for fraction in fractions]


def _short(number):
  """Rounds to six digits, to keep the page small."""
  return float(f"{number:.6g}")
