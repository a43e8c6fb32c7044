"""The page, in a real browser: it opens from disk, sorts, filters, zooms, and fits a phone."""

import json
import re

import plotly.graph_objects as go
import pytest

from okdph_jax.cli import report
from okdph_jax.report import charts, page, runs, tables
from tests.report.made import folder, trial

PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"></svg>'


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The report of two methods with three seeds, two values of omega, and a run under way."""
  root = tmp_path_factory.mktemp("runs")
  for seed, last in enumerate((0.80, 0.82, 0.84)):
    folder(root / f"okdph-{seed}", "okdph", seed, last=last + 0.06, training=8)
    folder(root / f"half-{seed}", "okdph", seed, last=last + 0.01, omega=0.5)
    folder(root / f"base-{seed}", "base", seed, last=last, validation=False)
  folder(root / "base-3", "base", 3, finished=False, done=4)
  (root / "okdph-0" / "analysis").mkdir()
  (root / "okdph-0" / "analysis" / "hessian.svg").write_text(PICTURE)
  hessian = {"analysis": "hessian", "notes": ["of 1 <image>"]}
  (root / "okdph-0" / "analysis" / "hessian.json").write_text(json.dumps(hessian))
  for name, content in (("student_0", '{"accuracy": 1}'), ("list", "[1]"), ("torn", "{")):
    (root / f"{name}.svg").write_text(PICTURE)  # as `okdph evaluate` and others write them
    (root / f"{name}.json").write_text(content)
  out = root / "report"
  assert report.main([str(root), f"--out={out}", "--baseline=base", "--title=A <title>"]) == 0
  return out


@pytest.fixture
def opened(written, browser):
  """Opens the page; what it prints and asks the network for is an error."""
  pages, wrong = [], []

  def opened(**options):
    one = browser.new_page(**options)
    pages.append(one)
    one.on("console", lambda message: wrong.append(message.text))
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on(
      "request", lambda request: wrong.append(request.url) if "http" in request.url else None
    )
    one.goto(f"file://{written}/report.html")
    one.wait_for_function("typeof Plotly !== 'undefined'")
    return one

  yield opened
  for one in pages:
    one.close()
  assert wrong == []


def column(table, number):
  cells = table.locator(f"tbody tr:visible td:nth-child({number})")
  return [text.strip() for text in cells.all_inner_texts()]


def test_files_are_written_and_the_page_is_the_same_again(written, tmp_path):
  names = {path.name for path in written.iterdir()}
  assert names == {"tables.md", "tables.csv", "tables.tex", "report.html"}
  report.main(
    [str(written.parent), f"--out={tmp_path}", "--baseline=base", "--title=A <title>"]
  )
  assert (tmp_path / "report.html").read_bytes() == (written / "report.html").read_bytes()


def test_a_click_sorts_and_words_filter(opened):
  one = opened()
  assert one.locator("h1").inner_text() == "A <title>"
  table = one.locator("section table").first
  assert column(table, 1) == ["base", "okdph, omega=0.5", "okdph, omega=0.8"]
  head = table.locator("th", has_text="best single network on test, last epoch")
  place = head.evaluate("cell => cell.cellIndex + 1")
  head.locator("button").click()
  assert column(table, place) == ["88.00 ± 2.00", "83.00 ± 2.00", "82.00 ± 2.00"]
  assert head.get_attribute("aria-sort") == "descending"
  head.locator("button").click()
  assert column(table, place) == ["82.00 ± 2.00", "83.00 ± 2.00", "88.00 ± 2.00"]
  one.locator("#filter").fill("OKDPH 0.5")
  assert column(table, 1) == ["okdph, omega=0.5"]
  one.locator("#filter").fill("")
  assert len(column(table, 1)) == 3


def test_a_number_opens_its_runs_with_their_commands_and_configs(opened):
  one = opened()
  one.get_by_role("link", name="83.00 ± 2.00").first.click()
  dialog = one.locator("dialog")
  assert dialog.locator("h3").all_inner_texts() == ["half-0", "half-1", "half-2"]
  command = "okdph train --config=digits:okdph --config.seed=1"
  assert dialog.locator("pre.command").nth(1).inner_text() == command
  dialog.locator("summary", has_text="config").first.click()
  assert '"omega": 0.5' in dialog.locator("pre:visible", has_text="network").inner_text()
  dialog.get_by_role("button", name="close").click()
  assert not dialog.is_visible()


def test_charts_are_drawn_and_chosen_from(opened):
  one = opened()
  figure = one.locator("figure", has=one.get_by_role("heading", name="Curves"))
  figure.scroll_into_view_if_needed()
  plot = figure.locator(".plot.drawn")
  plot.wait_for()
  shown = "plot => plot.data.filter(trace => trace.visible).map(trace => trace.meta)"
  before = plot.evaluate(shown)
  assert {meta["quantity"] for meta in before} == {"test accuracy"}
  assert {meta["reader"] for meta in before} == {"student_0", "hybrid", "ensemble"}
  assert len(plot.evaluate("plot => plot.layout.shapes")) == 2  # the rate drops twice
  figure.get_by_role("button", name="base").click()
  assert "base" not in {meta["method"] for meta in plot.evaluate(shown)}
  figure.locator("select").select_option("training loss, single steps")
  assert {meta["method"] for meta in plot.evaluate(shown)} == {"okdph, omega=0.8"}
  assert plot.locator(".ytitle").text_content() == "training loss, single steps [nats]"

  box = plot.locator(".nsewdrag").first.bounding_box()
  one.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
  one.mouse.down()
  one.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
  wide = plot.evaluate("plot => plot.layout.xaxis.range")
  one.mouse.up()
  narrow = plot.evaluate("plot => plot.layout.xaxis.range")
  assert narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])  # a drag zooms
  figure.locator("select").select_option("test accuracy")
  assert plot.evaluate("plot => plot.layout.xaxis.range")[1] > 9  # of 10 epochs

  names = one.locator("figure h4").all_inner_texts()
  assert names == [
    *("Accuracy", "Difference to base", "Curves", "Sensitivity to omega"),
    *("Accuracy against cost", "hessian"),
  ]


def test_dark_follows_the_system_and_the_button(opened):
  one = opened(color_scheme="dark")
  back = "getComputedStyle(document.body).backgroundColor"
  assert sum(map(int, re.findall(r"\d+", one.evaluate(back))[:3])) < 150
  one.locator(".plot.drawn").first.wait_for()
  font = "document.querySelector('.plot.drawn').layout.font.color"
  light_text = one.evaluate(font)
  one.get_by_role("button", name="light or dark").click()
  assert one.evaluate(back) == "rgb(255, 255, 255)"
  assert one.evaluate(font) != light_text


def test_a_phone_needs_no_sideways_scrolling(opened):
  one = opened(viewport={"width": 360, "height": 740})
  for plot in one.locator(".plot").all():
    plot.scroll_into_view_if_needed()
    one.wait_for_function("plot => plot.classList.contains('drawn')", arg=plot.element_handle())
  assert one.evaluate("document.documentElement.scrollWidth") == 360
  wide = "[...document.querySelectorAll('.plot')].map(p => p.querySelector('svg').clientWidth)"
  assert max(one.evaluate(wide)) < 360


# Without a browser.


def test_every_chart_is_valid_for_plotly(written):
  text = (written / "report.html").read_text()
  (content,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', text)
  for chart in json.loads(content):
    controls = {control["name"]: control["options"] for control in chart["controls"]}
    for trace in chart["traces"]:
      for name, value in trace.pop("meta").items():
        assert value in [option["value"] for option in controls[name]]
      trace.pop("runs", None)
      go.Scatter(trace)
    go.Layout(chart["layout"])


def test_text_of_runs_is_escaped(written):
  text = (written / "report.html").read_text()
  assert "A &lt;title&gt;" in text and "of 1 &lt;image&gt;" in text and "<image>" not in text
  assert text.count("</script>") == 4


def test_options_that_vary_alone():
  trials = [
    trial("okdph", 0, omega=omega, beta=beta) for omega, beta in ((0, 0), (0, 1), (1, 1))
  ]
  trials += [
    trial("okdph", 0, omega=0, beta=1, clock=clock) for clock in ("5 steps", "1 epoch")
  ]
  trials += [trial("okdph", 0, omega=0, beta=1, clock="200 steps")]
  ((_, rows),) = runs.grouped(trials)
  found = {
    option: [[value for value, _ in members] for _, members in lines]
    for option, lines in charts.varied(rows)
  }
  assert found == {
    "beta": [[0, 1]],
    "clock": [["5 steps", "200 steps", "1 epoch"]],
    "omega": [[0, 1]],
  }


def test_long_series_are_means_over_windows():
  series = [{step / 4: float(step) for step in range(4000)}] * 2
  x, means, spreads = charts._over_seeds(series)
  assert len(x) == charts.POINTS and x[0] == 9 / 4 and means[0] == 4.5 and set(spreads) == {0}


def test_without_any_evaluation_there_is_a_page(tmp_path):
  folder(tmp_path / "new", "base", 0, finished=False, done=0)
  trials, _ = runs.find([tmp_path])
  assert "interrupted" in page.render(trials, tables.sections(trials), title="t")


def test_a_baseline_alone_and_networks_of_other_names_have_a_page(tmp_path):
  folder(tmp_path / "base", "base", 0)
  out = tmp_path / "out"
  assert report.main([str(tmp_path), "--baseline=base", f"--out={out}"]) == 0
  for seed in (1, 2):
    run = folder(tmp_path / f"own-{seed}", "base", seed, network=f"mine:Net{seed}")
    result = json.loads((run.path / "result.json").read_text())
    result["readers"] = {"net": result["readers"]["student_0"]}
    (run.path / "result.json").write_text(json.dumps(result))
  assert report.main([str(tmp_path), f"--out={out}"]) == 0


def test_curves_of_runs_without_a_common_epoch_are_left_out():
  alike, apart = {1.0: 2.0, 2.0: 3.0}, {1.5: 4.0}
  numbers = {"a-1": alike, "a-2": apart, "b-1": alike, "b-2": alike}
  for name, count in (("a", 0), ("b", 2)):  # a mean and its band
    trials = [trial(name, seed) for seed in (1, 2)]
    index = {one: i for i, one in enumerate(trials)}
    style = charts.Style([name])
    numbers_of = lambda one: numbers[one.name]  # noqa: E731
    found = list(charts._curve(name, trials, numbers_of, style, index, {}, "loss"))
    assert len(found) == count


def test_training_metrics_have_their_units():
  units = [charts.unit(name) for name in ("loss", "hybrid_accuracy", "gradient_cosine")]
  assert units == [" [nats]", " [fraction]", ""]
