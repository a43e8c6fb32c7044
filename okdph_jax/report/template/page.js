"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const details = read("details");
const charts = read("charts");

// Light or dark: as the system says, or as chosen with the button.

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;
function theme() {
  const name = chosenTheme ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = name;
  return name;
}
theme();
dark.addEventListener("change", () => { theme(); recolour(); });
document.getElementById("theme").addEventListener("click", () => {
  chosenTheme = theme() === "dark" ? "light" : "dark";
  theme();
  recolour();
});

// Tables: sorted by a click on a column, filtered by the words in the field.

function key(cell) {
  if (cell.dataset.order !== undefined) return Number(cell.dataset.order);
  return cell.textContent.trim();
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");  // empty cells stay last
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const up = head.ariaSort === "none" ? head.className === "left" : head.ariaSort === "descending";
    for (const other of head.parentNode.cells) other.ariaSort = "none";
    head.ariaSort = up ? "ascending" : "descending";
    const rows = [...body.rows].map((row) => [key(row.cells[head.cellIndex]), row]);
    rows.sort(([a], [b]) => compare(a, b, up ? 1 : -1));
    body.append(...rows.map(([, row]) => row));
  });
}

document.getElementById("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.querySelectorAll("table.data tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});

// A run: its numbers, command and config.

const dialog = document.getElementById("dialog");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function tableOf(columns, rows) {
  const table = element("table");
  const add = (section, cells, tag) => {
    const row = section.insertRow();
    cells.forEach((cell, i) => row.append(element(tag, cell, i ? "" : "left")));
  };
  add(table.createTHead(), columns, "th");
  const body = table.createTBody();
  rows.forEach((row) => add(body, row, "td"));
  return table;
}

function folded(title, content) {
  const made = element("details");
  made.append(element("summary", title), element("pre", JSON.stringify(content, null, 2)));
  return made;
}

function show(numbers) {
  const content = document.getElementById("dialog-content");
  content.replaceChildren();
  for (const number of numbers) {
    const run = details[number];
    content.append(element("h3", run.name), element("div", `${run.label}, seed ${run.seed}`));
    if (run.readers.length) {
      const columns = ["test accuracy [%]", "last", "best on test", "chosen on validation"];
      const wide = element("div", undefined, "wide");
      wide.append(tableOf(columns, run.readers));
      content.append(wide);
    } else {
      content.append(element("p", "not finished"));
    }
    if (run.command) {
      const copy = element("button", "copy");
      copy.addEventListener("click", async () => {
        await navigator.clipboard.writeText(run.command);
        copy.textContent = "copied";
      });
      content.append(element("pre", run.command, "command"), copy);
    } else {
      content.append(element("p", "Its command was not recorded; the config says what ran."));
    }
    content.append(folded("config", run.config));
    if (run.environment) content.append(folded("environment", run.environment));
  }
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-runs]");
  if (link) {
    event.preventDefault();
    show(link.dataset.runs.split(" "));
  }
  if (event.target === dialog) dialog.close();
});

// Charts: drawn when they come into view.

const small = matchMedia("(pointer: coarse)").matches;

function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["text", "dim", "line", "panel"].map((n) => [n, style.getPropertyValue(`--${n}`).trim()]));
}

function themed() {
  const { text, line, panel } = colours();
  const axis = (name) => ({ [`${name}.gridcolor`]: line, [`${name}.linecolor`]: line, [`${name}.zerolinecolor`]: text });
  return { "font.color": text, "hoverlabel.bgcolor": panel, "hoverlabel.font.color": text, ...axis("xaxis"), ...axis("yaxis") };
}

function recolour() {
  for (const plot of document.querySelectorAll(".plot.drawn")) Plotly.relayout(plot, themed());
}

function assign(layout, flat) {
  for (const [path, value] of Object.entries(flat)) {
    const names = path.split(".");
    const last = names.pop();
    let at = layout;
    for (const name of names) at = at[name] ??= {};
    at[last] = value;
  }
  return layout;
}

function chosen(chart) {
  const values = chart.controls.map((c) => [c.name, new Set(c.options.filter((o) => o.chosen).map((o) => o.value))]);
  return chart.traces.map(({ meta }) => values.every(([name, set]) => !(name in meta) || set.has(meta[name])));
}

function draw(plot) {
  const chart = charts[plot.id.split("-")[1]];
  const visible = chosen(chart);
  const layout = assign(structuredClone(chart.layout), themed());
  Object.assign(layout, {
    autosize: true, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 60, r: 16, t: 16, b: 52 }, dragmode: small ? false : "zoom",
  });
  layout.font.family = getComputedStyle(document.body).fontFamily;
  layout.yaxis.automargin = true;
  const traces = chart.traces.map((trace, i) => ({ type: "scatter", ...trace, visible: visible[i] }));
  const config = {
    responsive: true, displaylogo: false, scrollZoom: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { format: "svg" },
  };
  plot.classList.add("drawn");
  Plotly.newPlot(plot, traces, layout, config);
  plot.on("plotly_click", ({ points: [point] }) => {
    const runs = point.data.runs ?? point.customdata;
    if (runs) show([].concat(runs));
  });
}

function update(number, patch = {}) {
  const plot = document.getElementById(`chart-${number}`);
  if (!plot.classList.contains("drawn")) return;
  Plotly.update(plot, { visible: chosen(charts[number]) }, { ...layoutOf(charts[number]), ...patch });
}

// Another quantity has another scale: what was zoomed into is left.
function unzoomed({ layout }) {
  const axes = ["xaxis", "yaxis"].filter((axis) => !layout[axis].range);
  return Object.fromEntries(axes.map((axis) => [`${axis}.autorange`, true]));
}

function layoutOf(chart) {
  const single = chart.controls.filter((c) => !c.several).flatMap((c) => c.options.filter((o) => o.chosen));
  return single.reduce((all, option) => ({ ...all, ...option.layout }), {});
}

for (const controls of document.querySelectorAll(".controls")) {
  const number = controls.dataset.chart;
  const options = (name) => charts[number].controls.find((c) => c.name === name).options;
  controls.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const option = options(button.parentNode.dataset.control).find((o) => o.value === button.dataset.value);
    option.chosen = !option.chosen;
    button.ariaPressed = String(option.chosen);
    update(number);
  });
  controls.addEventListener("change", (event) => {
    for (const option of options(event.target.dataset.control)) option.chosen = option.value === event.target.value;
    update(number, unzoomed(charts[number]));
  });
}

async function load() {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "600px" });
  for (const plot of document.querySelectorAll(".plot")) seen.observe(plot);
}
load();
