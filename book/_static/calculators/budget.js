"use strict";
/* A long prompt arrives while others decode: the token budget cuts it into chunks. */

Calculators.budget = {
  before: 3, // steps shown before the prompt arrives, and after its last chunk

  fields(presets) {
    return [
      { name: "decoding", label: "Sequences that decode", min: 1, max: 32, step: 1 },
      { name: "prompt", label: "Tokens of the new prompt", values: [32, 64, 128, 256, 512, 1024, 2048] },
      { name: "budget", label: "Token budget of a step", values: [40, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096] },
      { name: "machine", label: "Step times of", options: presets.curves.map((c) => [c.name, c.name]) },
    ];
  },
  initial(presets) {
    return { decoding: 6, prompt: 512, budget: 64, machine: presets.curves[0].name };
  },
  /* Tokens that each step computes: first one per running sequence, then as much of the prompt as the budget allows. */
  steps(decoding, prompt, budget) {
    const steps = [];
    let left = prompt;
    while (left > 0) {
      const chunk = Math.min(left, budget - decoding);
      steps.push({ decode: decoding, chunk });
      left -= chunk;
    }
    return steps;
  },
  compute({ decoding, prompt, budget, machine }, presets) {
    const curve = presets.curves.find((c) => c.name === machine), { before } = Calculators.budget;
    const time = ({ decode, chunk }) => Counts.stepTime(curve, decode + chunk);
    const middle = Calculators.budget.steps(decoding, prompt, budget);
    const around = (decode) => Array.from({ length: before }, () => ({ decode, chunk: 0 }));
    const steps = [...around(decoding), ...middle, ...around(decoding + 1)].map((s) => ({ ...s, seconds: time(s) }));
    const prefill = steps.slice(before, before + middle.length);
    return {
      steps, promptSteps: prefill.length,
      longestGap: Math.max(...prefill.map((s) => s.seconds)), usualGap: steps[0].seconds,
      ttft: prefill.reduce((sum, s) => sum + s.seconds, 0),
    };
  },
  rows(r) {
    const { seconds, number } = CalculatorText;
    return [
      ["Steps until the prompt is computed", number(r.promptSteps)],
      ["Gap between tokens of the others", `${seconds(r.usualGap)} as usual, ${seconds(r.longestGap)} at most`],
      ["Time to the first token of the new request", seconds(r.ttft)],
    ];
  },
  draw(r, width) {
    const { svg, html } = CalculatorDom, left = 56, bottom = 40, top = 10, height = 230;
    const most = Math.max(...r.steps.map((s) => s.decode + s.chunk)), unit = (width - left - 8) / r.steps.length;
    const y = (tokens) => height - bottom - (tokens / most) * (height - bottom - top);
    const chart = svg("svg", { width, height, role: "img", class: "calculator-chart",
      "aria-label": `Tokens per step: ${r.promptSteps} steps compute the prompt.` });
    for (const tick of CalculatorTicks({ log: false, least: 0, most }, 5)) {
      chart.append(svg("line", { class: "grid", x1: left, x2: width - 8, y1: y(tick), y2: y(tick) }));
      chart.append(svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, CalculatorText.number(tick)));
    }
    r.steps.forEach(({ decode, chunk }, i) => {
      const x = left + i * unit, wide = Math.max(1, unit - Math.min(2, unit / 4));
      chart.append(svg("rect", { class: "fill-1", x, width: wide, y: y(decode), height: y(0) - y(decode) }));
      chart.append(svg("rect", { class: "fill-2", x, width: wide, y: y(decode + chunk), height: y(decode) - y(decode + chunk) }));
    });
    chart.append(svg("text", { x: (left + width) / 2, y: height - 10, "text-anchor": "middle" }, "steps, from left to right"));
    chart.append(svg("text", { x: 14, y: height / 2 - 10, "text-anchor": "middle", transform: `rotate(-90 14 ${height / 2 - 10})` }, "tokens in the step"));
    const series = [{ label: "decoding, one per sequence", area: 1 }, { label: "chunk of the prompt", area: 2 }];
    return html("div", {}, CalculatorLegend(series), chart);
  },
};
