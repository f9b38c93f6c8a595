"use strict";
/* Speculative decoding: tokens per step and speed-up, with free rows and with measured step times. */

Calculators.speculation = {
  fields(presets) {
    const ks = Array.from({ length: 17 }, (_, k) => k);
    return [
      { name: "text", label: "Acceptance of the first draft", options: [["own", "your own choice"], ...presets.texts.map((t) => [t.name, t.name])] },
      { name: "alpha", label: "Acceptance rate α", min: 0, max: 1, step: 0.01 },
      { name: "k", label: "Drafts per step k", values: ks },
      { name: "cost", label: "Time of a draft token, in steps: c", min: 0, max: 1, step: 0.01 },
      { name: "batch", label: "Sequences in the step", values: [1, 2, 4, 8, 16, 32, 64] },
      { name: "machine", label: "Step times of", options: presets.curves.map((c) => [c.name, c.name]) },
    ];
  },
  initial(presets) {
    return { text: "own", alpha: 0.7, k: 4, cost: 0, batch: 1, machine: presets.curves[0].name };
  },
  choose(name, values, presets) {
    if (name === "alpha") values.text = "own";
    const text = presets.texts.find((t) => t.name === values.text);
    if (name === "text" && text) values.alpha = Math.round(100 * text.alpha) / 100;
  },
  tokens(alpha, k) {
    return alpha === 1 ? k + 1 : (1 - alpha ** (k + 1)) / (1 - alpha);
  },
  speedUp(alpha, k, cost) {
    return Calculators.speculation.tokens(alpha, k) / (k * cost + 1);
  },
  bestK(alpha, cost, most) {
    let best = 0;
    for (let k = 1; k <= most; k++) {
      if (Calculators.speculation.speedUp(alpha, k, cost) > Calculators.speculation.speedUp(alpha, best, cost)) best = k;
    }
    return best;
  },
  compute({ alpha, k, cost, batch, machine }, presets) {
    const { tokens, speedUp, bestK } = Calculators.speculation, { stepTime } = Counts;
    const curve = presets.curves.find((c) => c.name === machine);
    const one = stepTime(curve, batch);
    const measured = (n) => (tokens(alpha, n) * one) / (stepTime(curve, batch * (n + 1)) + n * cost * one);
    const ks = Array.from({ length: 17 }, (_, n) => n);
    return {
      k, tokens: tokens(alpha, k), free: speedUp(alpha, k, cost), best: bestK(alpha, cost, 16), measured: measured(k),
      bestMeasured: ks.reduce((best, n) => (measured(n) > measured(best) ? n : best), 0),
      rowsTime: stepTime(curve, batch * (k + 1)) / one,
      curve: ks.map((n) => [n, speedUp(alpha, n, cost), measured(n)]),
    };
  },
  rows(r, { batch }) {
    const { number } = CalculatorText;
    return [
      ["Tokens per step", number(r.tokens)],
      ["Speed-up if further rows were free", `${number(r.free)}; best with k = ${r.best}`],
      [`Time of a step of ${batch * (r.k + 1)} rows`, `${number(r.rowsTime)} times that of ${batch}`],
      ["Speed-up with these step times", `${number(r.measured)}; best with k = ${r.bestMeasured}`],
    ];
  },
  draw(r, width) {
    const free = r.curve.map(([n, v]) => [n, v]), measured = r.curve.map(([n, , v]) => [n, v]);
    const most = Math.max(1.5, ...free.map(([, v]) => v), ...measured.map(([, v]) => v));
    return CalculatorChart(width, {
      label: "Speed-up by the number of drafts, with free rows and with measured step times",
      x: { label: "drafts per step k", log: false, least: 0, most: 16 },
      y: { label: "speed-up", log: false, least: 0, most },
      series: [
        { label: "rows are free", points: free, kind: 1 }, { label: "measured step times", points: measured, kind: 2 },
        { label: "no gain", points: [[0, 1], [16, 1]], kind: 4 },
      ],
      marks: [[r.k, r.measured], [r.k, r.free]],
    });
  },
};
