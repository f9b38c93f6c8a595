"use strict";
/* The least time of a decode step: its bytes over the bandwidth, its operations over the rate. */

Calculators.roofline = {
  batches: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],

  fields(presets) {
    return [
      { name: "machine", label: "Machine", options: presets.machines.map((m) => [m.name, m.name]) },
      { name: "model", label: "Model", options: Object.keys(presets.models).map((name) => [name, name]) },
      { name: "dtype", label: "Numbers", options: [["float32", "float32"], ["bfloat16", "bfloat16"]],
        allowed: (values, { machines }, dtype) => dtype in machines.find((m) => m.name === values.machine).flops },
      { name: "batch", label: "Sequences in the step", values: Calculators.roofline.batches },
      { name: "length", label: "Tokens of each sequence", values: [16, 64, 128, 256, 512, 1024, 2048, 4096, 8192] },
    ];
  },
  initial(presets) {
    const machine = presets.machines[0];
    return { machine: machine.name, model: Object.keys(presets.models)[0], dtype: "float32", batch: 1, length: 128 };
  },
  choose(name, values, presets) {
    // A machine's rate may be known for one dtype only.
    const { flops } = presets.machines.find((m) => m.name === values.machine);
    if (!(values.dtype in flops)) values.dtype = Object.keys(flops)[0];
  },
  step(model, machine, dtype, batch, length) {
    const weights = Counts.streamedBytes(model, dtype);
    const caches = batch * length * Counts.kvBytesPerToken(model, dtype);
    const flops = batch * Counts.decodeFlops(model, length);
    const byteTime = (weights + caches) / machine.bandwidth, flopTime = flops / machine.flops[dtype];
    return { weights, caches, flops, byteTime, flopTime, bound: Math.max(byteTime, flopTime) };
  },
  compute({ machine, model, dtype, batch, length }, presets) {
    const rates = presets.machines.find((m) => m.name === machine), shape = presets.models[model];
    const step = (n) => Calculators.roofline.step(shape, rates, dtype, n, length);
    const weightTime = Counts.streamedBytes(shape, dtype) / rates.bandwidth;
    const cacheTime = (length * Counts.kvBytesPerToken(shape, dtype)) / rates.bandwidth;
    const more = Counts.decodeFlops(shape, length) / rates.flops[dtype] - cacheTime;
    const curve = Calculators.roofline.batches.map((n) => [n, step(n)]);
    return { ...step(batch), batch, turning: more > 0 ? Math.ceil(weightTime / more) : null, curve };
  },
  rows(r) {
    const { bytes, number, seconds } = CalculatorText;
    const limit = r.flopTime > r.byteTime ? "arithmetic" : "memory bandwidth";
    return [
      ["Bytes to read", `${bytes(r.weights)} of weights, ${bytes(r.caches)} of keys and values`],
      ["Operations", `${number(r.flops / 1e9)} GFLOP`],
      ["Least time for the bytes", seconds(r.byteTime)],
      ["Least time for the operations", seconds(r.flopTime)],
      ["Least time of the step", `${seconds(r.bound)}, limited by ${limit}`],
      ["Tokens per second at most", number(r.batch / r.bound)],
      ["Turning point", r.turning === null
        ? "none: each further cache takes longer to read than its operations take"
        : `arithmetic limits steps of ${number(r.turning)} sequences or more`],
    ];
  },
  draw(r, width) {
    const line = (pick) => r.curve.map(([n, step]) => [n, 1e3 * pick(step)]);
    const bytes = line((s) => s.byteTime), flops = line((s) => s.flopTime);
    const all = [...bytes, ...flops].map(([, v]) => v);
    return CalculatorChart(width, {
      label: "Least time for the bytes and for the operations of a step, by the number of sequences",
      x: { label: "sequences in the step", log: 2, least: 1, most: 512 },
      y: { label: "milliseconds", log: 10, least: Math.min(...all), most: Math.max(...all) },
      series: [{ label: "bytes", points: bytes, kind: 1 }, { label: "operations", points: flops, kind: 2 }],
      marks: [[r.batch, 1e3 * r.bound]],
    });
  },
};
