"use strict";
/* A small line chart as SVG, drawn at the width of its column so that its text keeps its size on a phone.

CalculatorChart(width, {label, x, y, series, marks}): x and y are {label, log: 2 | 10 | false, least, most, ticks};
series is [{label, points: [[x, y]], kind}], kind 1 to 4 names a colour; marks is [[x, y]]. */

function CalculatorChart(width, { label, x, y, series, marks = [], height = 260 }) {
  const { svg } = CalculatorDom, left = 56, right = 22, top = 14, bottom = 44;
  const place = (axis, from, to) => {
    const scale = axis.log ? Math.log : (v) => v;
    const least = scale(axis.least), most = scale(axis.most);
    return (v) => from + ((scale(v) - least) / (most - least || 1)) * (to - from);
  };
  const px = place(x, left, width - right), py = place(y, height - bottom, top);
  const inside = (v, axis) => Number.isFinite(v) && v >= axis.least && v <= axis.most;
  const chart = svg("svg", { width, height, role: "img", "aria-label": label, class: "calculator-chart" });
  for (const tick of CalculatorTicks(x, width / 70)) {
    chart.append(svg("line", { class: "grid", x1: px(tick), x2: px(tick), y1: top, y2: height - bottom }));
    const text = CalculatorText.number(tick);
    chart.append(svg("text", { x: px(tick), y: height - bottom + 16, "text-anchor": "middle" }, text));
  }
  for (const tick of CalculatorTicks(y, 6)) {
    chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) }));
    const text = CalculatorText.number(tick);
    chart.append(svg("text", { x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, text));
  }
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, x.label));
  chart.append(svg("text", { x: 14, y: (top + height - bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, y.label));
  for (const { points, kind } of series) {
    const line = points.filter(([u, v]) => inside(u, x) && inside(v, y));
    const path = line.map(([u, v]) => `${px(u).toFixed(1)},${py(v).toFixed(1)}`).join(" ");
    chart.append(svg("polyline", { class: `line kind-${kind}`, points: path }));
  }
  for (const [u, v] of marks) {
    if (inside(u, x) && inside(v, y)) chart.append(svg("circle", { class: "mark", cx: px(u), cy: py(v), r: 5 }));
  }
  return CalculatorDom.html("div", {}, CalculatorLegend(series), chart);
}

/* The key of a series is a stroke of its line, or a square where the series is drawn as areas. */
function CalculatorLegend(series) {
  const { html } = CalculatorDom;
  const items = series.map(({ label, kind, area }) =>
    html("span", {}, html("i", { class: area ? `key area-${area}` : `key kind-${kind}` }), label));
  return html("div", { class: "calculator-legend" }, ...items);
}

/* At most about `count` ticks: powers of the axis' base, or round numbers. */
function CalculatorTicks({ log, least, most }, count) {
  if (log) {
    const first = Math.ceil(Math.log(least) / Math.log(log) - 1e-9), last = Math.floor(Math.log(most) / Math.log(log) + 1e-9);
    const every = Math.max(1, Math.ceil((last - first + 1) / count)), ticks = [];
    for (let power = first; power <= last; power += every) ticks.push(log ** power);
    return ticks;
  }
  const rough = (most - least) / count, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= rough), ticks = [];
  for (let tick = Math.ceil(least / step) * step; tick <= most + 1e-9; tick += step) ticks.push(Number(tick.toPrecision(6)));
  return ticks;
}
