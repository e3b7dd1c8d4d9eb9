"use strict";
// hands the specifications to Chart.js: colours of the page, the words of the hover, the filters
const page = JSON.parse(document.getElementById("charts").textContent);
let values = [];
// what many charts share is in the page once: lines, and the values of the chart before against another cost
const specifications = page.charts.map(({ lines, x, ...chart }) => {
  values = lines ?? values;
  const datasets = values.map(([line, points], i) => ({
    ...page.lines[line],
    data: points.map(([cost, y, yMin, yMax, value, about], j) => ({
      x: x ? x[i][j] : cost, y, ...(yMax ? { yMin, yMax } : {}), value, about: page.abouts[about],
    })),
  }));
  return { ...chart, data: { datasets } };
});
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const drawn = [];

function paint(chart) {
  for (const line of chart.data.datasets) {
    const own = line.colour < 0 ? colour("--soft") : colour(`--c${line.colour}`);
    Object.assign(line, { borderColor: own, backgroundColor: own, errorBarColor: own, errorBarWhiskerColor: own });
  }
  for (const scale of Object.values(chart.options.scales)) {
    scale.ticks = { ...scale.ticks, color: colour("--text") };
    scale.grid = { color: colour("--line") };
    scale.title = { ...scale.title, color: colour("--text") };
  }
  chart.options.plugins.legend.labels.color = colour("--text");
}

// the numbers that were asked for, or 1, 2 and 5 times powers of ten; the powers alone where those are many
function ticks(scale, axis) {
  if (scale.marked) {
    axis.ticks = scale.marked.map((value) => ({ value }));
    return;
  }
  const leading = (tick) => Number(Number(tick.value.toExponential().split("e")[0]).toFixed(6));
  const round = axis.ticks.filter((tick) => [1, 2, 5].includes(leading(tick)));
  const powers = round.filter((tick) => leading(tick) === 1);
  axis.ticks = powers.length > 3 ? powers : round.length > 1 ? round : axis.ticks;
}

function draw(canvas) {
  const chart = structuredClone(specifications[canvas.dataset.chart]);
  for (const scale of Object.values(chart.options.scales)) {
    scale.afterBuildTicks = (axis) => ticks(scale, axis);
    scale.ticks = { callback: (value) => String(Number(value.toPrecision(3))), maxRotation: 0 };
  }
  for (const line of chart.data.datasets) {
    Object.assign(line, { radius: line.radius ?? 4, hoverRadius: 7, borderWidth: 2, errorBarWhiskerSize: 8 });
  }
  chart.options.plugins.legend.labels = { usePointStyle: true };
  chart.options.plugins.legend.onClick = null;
  chart.options.plugins.tooltip = {
    filter: (item) => item.raw.value !== undefined,
    callbacks: { label: (item) => [`${item.dataset.label}: ${item.raw.value}`, item.raw.about] },
  };
  paint(chart);
  drawn.push({ section: canvas.closest(".run"), chart: new Chart(canvas, chart) });
}

function repaint() {
  for (const { chart } of drawn) {
    paint({ data: chart.data, options: chart.config.options });
    chart.update("none");
  }
}

function filter(section) {
  const off = (kind) =>
    new Set([...section.querySelectorAll(`input[data-${kind}]:not(:checked)`)].map((box) => box.dataset[kind]));
  const solvers = off("solver"), grids = off("grid"), families = off("family");
  for (const box of section.querySelectorAll("input[data-of]")) {
    if (families.has(box.dataset.of)) solvers.add(box.dataset.solver);
  }
  const away = (solver, grid) => solvers.has(solver) || grids.has(grid);
  const rows = page.rows[Number(section.id.replace("run-", ""))].map((row) => away(...row));
  for (const row of section.querySelectorAll("tr[data-row]")) row.hidden = rows[row.dataset.row];
  for (const one of drawn.filter((one) => one.section === section)) {
    one.chart.data.datasets.forEach((line) => (line.hidden = away(line.solver, line.grid)));
    one.chart.update("none");
  }
}

document.querySelectorAll("canvas[data-chart]").forEach(draw);
document.querySelectorAll(".run").forEach((section) => {
  const form = section.querySelector(".filters");
  form.addEventListener("change", () => filter(section));
  form.addEventListener("click", (event) => {
    if (event.target.dataset.all === undefined) return;
    const boxes = event.target.closest("fieldset").querySelectorAll("input");
    boxes.forEach((box) => (box.checked = event.target.dataset.all === "1"));
    filter(section);
  });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
const closed = () => document.querySelectorAll("details:not([open])");
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...closed()];
  folded.forEach((one) => (one.open = true));
  repaint();
});
addEventListener("afterprint", () => {
  folded.forEach((one) => (one.open = false));
  repaint();
});
