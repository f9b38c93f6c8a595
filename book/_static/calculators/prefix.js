"use strict";
/* A pool with a prefix cache: prompts are sent one after another, and their full blocks are kept by name. */

Calculators.prefix = {
  prompts: {
    "System prompt + question 1": ["S", 10, "a", 4],
    "System prompt + question 2": ["S", 10, "b", 6],
    "Question 1, second turn": ["S", 10, "a", 4, "c", 9],
    "Question 2, second turn": ["S", 10, "b", 6, "d", 9],
    "Nothing in common": ["x", 16],
  },
  /* ["S", 2, "a", 1] gives the tokens S1 S2 a1. */
  tokens(parts) {
    const tokens = [];
    for (let i = 0; i < parts.length; i += 2) {
      for (let n = 1; n <= parts[i + 1]; n++) tokens.push(`${parts[i]}${n}`);
    }
    return tokens;
  },

  fields() {
    return [
      { name: "pool", label: "Blocks in the pool", min: 4, max: 24, step: 1 },
      { name: "block", label: "Tokens per block", values: [1, 2, 4, 8] },
    ];
  },
  initial() {
    return { pool: 12, block: 4, sent: [], chosen: null };
  },
  actions(values) {
    const send = (name) => () => values.sent.push(name);
    const names = Object.keys(Calculators.prefix.prompts);
    const empty = ["Empty the pool", () => { values.sent.length = 0; values.chosen = null; }];
    return [...names.map((name) => [name, send(name)]), empty];
  },
  /* One prompt from admission to its end, as PrefixCachingBlockManager in lib/cache/prefix_cache.py. */
  serve(pool, tokens, block) {
    const names = [];
    for (let i = 0; (i + 1) * block <= tokens.length; i++) names.push(tokens.slice(0, (i + 1) * block).join(" "));
    const hits = [];
    // The last token is computed in any case: its logits are needed.
    for (const name of names.slice(0, Math.floor((tokens.length - 1) / block))) {
      if (!pool.blockOf.has(name)) break;
      hits.push(pool.blockOf.get(name));
    }
    const idle = pool.cached.length - hits.length, missing = Math.ceil(tokens.length / block) - hits.length;
    if (missing > pool.free.length + idle) return null;
    pool.cached = pool.cached.filter((id) => !hits.includes(id));
    const table = [...hits];
    for (let i = 0; i < missing; i++) {
      if (!pool.free.length) Calculators.prefix.evict(pool);
      table.push(pool.free.shift());
    }
    names.forEach((name, i) => {
      if (!pool.blockOf.has(name)) { pool.blockOf.set(name, table[i]); pool.nameOf.set(table[i], name); }
    });
    for (const id of [...table].reverse()) (pool.nameOf.has(id) ? pool.cached : pool.free).push(id);
    return hits.length * block;
  },
  evict(pool) {
    const id = pool.cached.shift();
    pool.blockOf.delete(pool.nameOf.get(id));
    pool.nameOf.delete(id);
    pool.free.push(id);
    pool.evictions += 1;
  },
  compute({ pool: blocks, block, sent }) {
    const pool = { free: [], cached: [], blockOf: new Map(), nameOf: new Map(), evictions: 0 };
    for (let id = 1; id <= blocks; id++) pool.free.push(id);
    const found = sent.map((name) => Calculators.prefix.serve(pool, Calculators.prefix.tokens(Calculators.prefix.prompts[name]), block));
    const sizes = sent.map((name) => Calculators.prefix.tokens(Calculators.prefix.prompts[name]).length);
    const served = sizes.filter((_, i) => found[i] !== null);
    return {
      found, queries: served.reduce((a, b) => a + b, 0), hits: found.reduce((a, b) => a + (b || 0), 0),
      evictions: pool.evictions, cached: pool.cached, free: pool.free, blocks, block,
      names: Object.fromEntries(pool.nameOf), last: sizes[sizes.length - 1],
    };
  },
  rows(r, { sent, chosen }) {
    const { number } = CalculatorText, last = r.found[r.found.length - 1];
    const what = !sent.length ? "none yet: press a button above"
      : last === null ? `${sent[sent.length - 1]}: does not fit into the pool`
      : `${sent[sent.length - 1]}: ${last} of ${r.last} tokens found, ${r.last - last} computed`;
    const before = r.cached.indexOf(chosen);
    const turn = before ? `evicted after ${before} other${before > 1 ? "s" : ""}` : "the next to be evicted";
    const block = chosen === null || chosen > r.blocks ? "none: click one in the pool"
      : !r.names[chosen] ? `block ${chosen}: free, without a name`
      : `block ${chosen}: found by a prompt that begins with “${r.names[chosen]}”; ${turn}`;
    return [
      ["Last prompt", what],
      ["All prompts", `${r.hits} of ${r.queries} tokens found${r.queries ? ` (${number(100 * r.hits / r.queries)} %)` : ""}; ${r.evictions} blocks evicted`],
      ["Chosen block", block],
    ];
  },
  draw(r, width, values, redraw) {
    const { svg, html } = CalculatorDom, wide = 80, high = 54, each = Math.max(1, Math.floor(width / (wide + 6)));
    const lines = Math.ceil(r.blocks / each);
    const chart = svg("svg", { width, height: lines * (high + 6), role: "group", class: "calculator-chart", "aria-label": "The pool" });
    for (let id = 1; id <= r.blocks; id++) {
      const x = ((id - 1) % each) * (wide + 6) + 1, y = Math.floor((id - 1) / each) * (high + 6) + 1;
      const own = r.names[id] ? r.names[id].split(" ").slice(-r.block) : [];
      const text = own.length > 2 ? `${own[0]} … ${own[own.length - 1]}` : own.join(" ");
      const choose = () => { values.chosen = id; redraw(); };
      const key = (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose();
        document.querySelector(`[data-block="${id}"]`)?.focus();
      };
      chart.append(svg("g", { tabindex: 0, role: "button", "data-block": id, click: choose, keydown: key,
        "aria-label": own.length ? `block ${id}: ${own.join(" ")}` : `block ${id}: free`, "aria-pressed": String(values.chosen === id) },
        svg("rect", { class: `${own.length ? "fill-3" : "ground"}${values.chosen === id ? " chosen" : ""}`, x, y, width: wide - 2, height: high - 2, rx: 5 }),
        svg("text", { x: x + 6, y: y + 17 }, `block ${id}`),
        svg("text", { class: "in-box", x: x + 6, y: y + 38 }, text || "free")));
    }
    const series = [{ label: "cached, found by its name", area: 3 }, { label: "free", area: 5 }];
    return html("div", {}, CalculatorLegend(series), chart);
  },
};
