"use strict";
/* Slots that fill and drain: static and continuous batching of the same answers. */

Calculators.batching = {
  requests: 10,

  fields() {
    const lengths = Array.from({ length: Calculators.batching.requests }, (_, i) =>
      ({ name: `answer${i + 1}`, label: `Answer ${i + 1}`, min: 1, max: 40, step: 1, unit: "tokens" }));
    return [{ name: "slots", label: "Slots", min: 1, max: 8, step: 1 }, ...lengths];
  },
  initial() {
    const lengths = [6, 30, 8, 4, 12, 5, 24, 7, 3, 10];
    return { slots: 4, ...Object.fromEntries(lengths.map((n, i) => [`answer${i + 1}`, n])) };
  },
  actions(values) {
    const set = (length) => {
      for (let i = 1; i <= Calculators.batching.requests; i++) values[`answer${i}`] = length(i);
    };
    return [
      ["All equal", () => set(() => 12)],
      ["One long answer in four", () => set((i) => (i % 4 === 1 ? 36 : 6))],
      ["The longest one last", () => set((i) => (i === Calculators.batching.requests ? 40 : 6))],
    ];
  },
  /* [{request, slot, start, end}]: a batch waits for its longest answer. */
  runStatic(lengths, slots) {
    let start = 0;
    const runs = [];
    for (let i = 0; i < lengths.length; i += slots) {
      const batch = lengths.slice(i, i + slots);
      batch.forEach((n, slot) => runs.push({ request: i + slot, slot, start, end: start + n }));
      start += Math.max(...batch);
    }
    return runs;
  },
  /* The slot that falls free first takes the next request at once. */
  runContinuous(lengths, slots) {
    const ends = Array(slots).fill(0);
    return lengths.map((n, request) => {
      const slot = ends.indexOf(Math.min(...ends)), start = ends[slot];
      ends[slot] = start + n;
      return { request, slot, start, end: ends[slot] };
    });
  },
  compute(values) {
    const lengths = Array.from({ length: Calculators.batching.requests }, (_, i) => values[`answer${i + 1}`]);
    const tokens = lengths.reduce((a, b) => a + b, 0);
    const summary = (runs) => {
      const steps = Math.max(...runs.map((run) => run.end));
      const mean = runs.reduce((sum, run) => sum + run.end, 0) / runs.length;
      return { runs, steps, mean, idle: steps * values.slots - tokens };
    };
    const { runStatic, runContinuous } = Calculators.batching;
    return { static: summary(runStatic(lengths, values.slots)), continuous: summary(runContinuous(lengths, values.slots)) };
  },
  rows(r, { slots }) {
    const { number } = CalculatorText;
    const row = ({ steps, idle, mean }) =>
      `${steps} steps; ${idle} of ${steps * slots} places idle; an answer ends after ${number(mean)} steps on average`;
    return [
      ["Static", row(r.static)], ["Continuous", row(r.continuous)],
      ["Steps, static over continuous", number(r.static.steps / r.continuous.steps)],
    ];
  },
  draw(r, width, { slots }) {
    const { svg } = CalculatorDom, left = 12, height = 18, gap = 26;
    const most = Math.max(r.static.steps, r.continuous.steps), unit = (width - left - 4) / most;
    const chart = svg("svg", { width, height: 2 * (slots * height + gap) + 24, role: "img", class: "calculator-chart",
      "aria-label": `Slots by step. Static: ${r.static.steps} steps. Continuous: ${r.continuous.steps} steps.` });
    let top = 0;
    for (const [name, { runs, steps }] of [["static", r.static], ["continuous", r.continuous]]) {
      chart.append(svg("text", { x: left, y: top + 17 }, `${name}: one row per slot, ${steps} steps`));
      top += gap;
      chart.append(svg("rect", { class: "ground", x: left, y: top, width: steps * unit, height: slots * height }));
      for (const { request, slot, start, end } of runs) {
        const x = left + start * unit, wide = (end - start) * unit, y = top + slot * height;
        chart.append(svg("rect", { class: `fill-${1 + (request % 4)}`, x, y: y + 1, width: Math.max(1, wide - 1), height: height - 2, rx: 3 }));
        if (wide > 16) chart.append(svg("text", { class: "in-box", x: x + wide / 2, y: y + 13, "text-anchor": "middle" }, request + 1));
      }
      top += slots * height;
    }
    chart.append(svg("text", { x: left, y: top + 20 }, "steps run from left to right; empty places are idle"));
    return chart;
  },
};
