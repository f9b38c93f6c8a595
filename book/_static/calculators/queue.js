"use strict";
/* A server with places and a limit, request by request: lib/loadtest/queue_model.py in JavaScript. */

Calculators.queue = {
  fields(presets) {
    return [
      { name: "server", label: "Step times of", options: presets.lines.map((l) => [l.name, l.name]) },
      { name: "pattern", label: "Requests come", options: [["random", "at random"], ["even", "evenly"], ["burst", "all at once"]] },
      { name: "users", label: "Number of requests", values: [8, 16, 32, 64, 128, 256, 512] },
      { name: "rate", label: "Rate", values: [0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32], unit: "per second",
        allowed: ({ pattern }) => pattern !== "burst" },
      { name: "answer", label: "Tokens of an answer", values: [1, 8, 16, 32, 64, 128, 256] },
      { name: "seats", label: "Sequences at the same time", values: [1, 2, 4, 8, 16, 32, 64] },
      { name: "limit", label: "Limit on requests inside (0: none)", values: [0, 1, 2, 4, 8, 16, 32, 64, 128] },
    ];
  },
  initial(presets) {
    const last = presets.lines[presets.lines.length - 1];
    return { server: last.name, pattern: "random", users: 128, rate: 4, answer: 64, seats: 8, limit: 0 };
  },
  /* Times of arrival in seconds. The random ones are the same in every browser (Park and Miller's generator). */
  arrivals(pattern, users, rate) {
    let state = 20251, time = 0;
    const gap = () => {
      state = (state * 48271) % 2147483647;
      return -Math.log(state / 2147483647) / rate;
    };
    return Array.from({ length: users }, (_, i) => {
      if (pattern === "burst") return 0;
      return pattern === "even" ? i / rate : (time += gap());
    });
  },
  serve(arrivals, answer, line, seats, limit) {
    const served = arrivals.map((arrived) => ({ arrived, first: null, last: null, left: answer }));
    const coming = [...served], waiting = [];
    let running = [], now = 0;
    const admit = () => {
      while (coming.length && coming[0].arrived <= now) {
        const request = coming.shift();
        if (!limit || waiting.length + running.length < limit) waiting.push(request);
      }
    };
    while (coming.length || waiting.length || running.length) {
      admit();
      while (waiting.length && running.length < seats) running.push(waiting.shift());
      if (!running.length) {
        if (coming.length) now = coming[0].arrived;
        continue;
      }
      now += line.shared + line.each * running.length;
      admit();
      for (const request of running) {
        request.first ??= now;
        request.left -= 1;
        if (!request.left) request.last = now;
      }
      running = running.filter((request) => request.left);
    }
    return served;
  },
  compute({ server, pattern, users, rate, answer, seats, limit }, presets) {
    const line = presets.lines.find((l) => l.name === server);
    const arrivals = Calculators.queue.arrivals(pattern, users, rate);
    const served = Calculators.queue.serve(arrivals, answer, line, seats, limit);
    const done = served.filter((r) => r.last !== null);
    const waits = done.map((r) => r.first - r.arrived), sorted = [...waits].sort((a, b) => a - b);
    const capacity = seats / (answer * (line.shared + line.each * seats));
    return {
      arrivals, served, capacity, rate, pattern,
      ttft: waits.reduce((a, b) => a + b, 0) / done.length, p95: CalculatorPercentile(sorted, 95),
      slowest: Math.max(...done.map((r) => r.last - r.arrived)),
      throughput: done.length / Math.max(...done.map((r) => r.last)),
      refused: 1 - done.length / served.length,
    };
  },
  rows(r) {
    const { number, seconds } = CalculatorText;
    const load = r.pattern === "burst" ? "the whole burst at once" : `${number(100 * r.rate / r.capacity)} % of it`;
    return [
      ["Capacity", `${number(r.capacity)} answers per second; offered is ${load}`],
      ["Time to the first token", `${seconds(r.ttft)} on average, ${seconds(r.p95)} at the 95th percentile`],
      ["Slowest answer", seconds(r.slowest)],
      ["Answers per second", number(r.throughput)],
      ["Refused", `${number(100 * r.refused)} %`],
    ];
  },
  draw(r, width) {
    const order = (pick) => r.served.map((s, i) => [i + 1, s.last === null ? NaN : pick(s)]);
    const first = order((s) => s.first - s.arrived), whole = order((s) => s.last - s.arrived);
    const most = Math.max(...whole.map(([, v]) => v || 0)) * 1.05;
    return CalculatorChart(width, {
      label: "Time to the first and to the last token of each answered request, in order of arrival",
      x: { label: "request, in order of arrival", log: false, least: 1, most: r.served.length },
      y: { label: "seconds since it came", log: false, least: 0, most },
      series: [{ label: "first token", points: first, kind: 1 }, { label: "last token", points: whole, kind: 2 }],
    });
  },
};

/* Linear between samples, as numpy's and lib/bench/measure/percentiles.py. */
function CalculatorPercentile(sorted, percent) {
  const place = ((sorted.length - 1) * percent) / 100, below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}
