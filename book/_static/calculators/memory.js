"use strict";
/* How many users fit: memory less the weights, in slots for the longest sequence or in blocks. */

Calculators.memory = {
  lengths: [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768],

  fields(presets) {
    return [
      { name: "model", label: "Model", options: Object.keys(presets.models).map((name) => [name, name]) },
      { name: "weights", label: "Weights", options: [["float32", "float32"], ["bfloat16", "bfloat16"], ["int8", "8 bits"]] },
      { name: "cache", label: "Keys and values", options: [["float32", "float32"], ["bfloat16", "bfloat16"], ["int8", "8 bits"]] },
      { name: "memory", label: "Memory for weights and cache", values: [1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 141], unit: "GB" },
      { name: "longest", label: "Longest sequence allowed", values: [256, 512, 1024, 2048, 4096, 8192, 16384, 32768], unit: "tokens" },
      { name: "length", label: "Tokens that each user has", values: Calculators.memory.lengths, unit: "tokens" },
      { name: "block", label: "Block size", values: [1, 8, 16, 32, 64, 128, 256], unit: "tokens" },
    ];
  },
  initial(presets) {
    return { model: Object.keys(presets.models)[0], weights: "float32", cache: "float32", memory: 8, longest: 1024, length: 256, block: 16 };
  },
  choose(name, values) {
    // A user cannot have more tokens than are allowed.
    if (values.length > values.longest) {
      if (name === "longest") values.length = values.longest;
      else values.longest = values.length;
    }
  },
  users({ perToken, room, longest, length, block }) {
    const slots = Math.floor(room / (longest * perToken));
    const blocks = Math.floor(room / (block * perToken));
    const paged = Math.floor(blocks / Math.ceil(length / block));
    return { slots, blocks, paged };
  },
  compute({ model, weights, cache, memory, longest, length, block }, presets) {
    const shape = presets.models[model];
    const weightBytes = Counts.weightBytes(shape, weights), perToken = Counts.kvBytesPerToken(shape, cache);
    const room = Math.max(0, memory * 1e9 - weightBytes);
    const at = (n) => Calculators.memory.users({ perToken, room, longest, length: n, block });
    const lengths = Calculators.memory.lengths.filter((n) => n <= longest);
    return {
      positions: shape.max_position_embeddings, weightBytes, perToken, room, longest, length, block, ...at(length),
      curve: lengths.map((n) => [n, at(n)]),
    };
  },
  rows(r) {
    const { bytes, number } = CalculatorText;
    const used = Math.ceil(r.length / r.block) * r.block;
    const tooLong = ["Longest sequence", `the model has positions for ${number(r.positions)} tokens only`];
    return [
      ...(r.longest > r.positions ? [tooLong] : []),
      ["Weights", bytes(r.weightBytes)],
      ["Left for the cache", r.room ? bytes(r.room) : "nothing: the weights do not fit"],
      ["Cache per token", bytes(r.perToken)],
      ["Cache per user", `${bytes(r.longest * r.perToken)} in a slot, ${bytes(used * r.perToken)} in blocks`],
      ["Users with contiguous slots", number(r.slots)],
      ["Users with blocks", number(r.paged)],
      ["Empty part of a user's room", `${number(100 * (1 - r.length / r.longest))} % of a slot, ${number(100 * (1 - r.length / used))} % of the blocks`],
    ];
  },
  draw(r, width) {
    const slots = r.curve.map(([n, u]) => [n, u.slots]), paged = r.curve.map(([n, u]) => [n, u.paged]);
    const most = Math.max(2, ...paged.map(([, v]) => v), r.slots);
    return CalculatorChart(width, {
      label: "Users that fit, by the tokens that each of them has",
      x: { label: "tokens that each user has", log: 2, least: 32, most: Math.max(64, r.longest) },
      y: { label: "users", log: 10, least: 1, most },
      series: [{ label: "blocks", points: paged, kind: 2 }, { label: "contiguous slots", points: slots, kind: 1 }],
      marks: [[r.length, r.paged], [r.length, r.slots]],
    });
  },
};
