// The engine at work: listens to /engine/events and shows what it hears.

import { call, events } from "./api.js";
import { chart, duration, format } from "./charts.js";
import { colour, dark, forgetAllBut } from "./colours.js";
import { Minute, quantile } from "./minute.js";
import { Pool } from "./pool.js";

const $ = (id) => document.getElementById(id);
const mostPills = () => (innerWidth > 860 ? 36 : 18);  // what the list's height has room for

export class Engine {
  constructor(mine, onKeyNeeded) {
    this.mine = mine;             // ids of this page's own chat
    this.onKeyNeeded = onKeyNeeded;
    this.minute = new Minute();
    this.pool = new Pool($("pool"), (id) => this.pick(id));
    this.spoken = 0;
    for (const list of ["running-list", "waiting-list"]) {
      $(list).addEventListener("pointerover", (event) => this.pick(event.target.closest("li")?.dataset.id ?? null));
      $(list).addEventListener("pointerleave", () => this.pick(null));
    }
    setInterval(() => this.showMinute(), 500);
    dark.addEventListener("change", () => { this.showMinute(); if (this.snapshot) this.show(this.snapshot); });
  }

  async listen() {
    for (;;) {
      try {
        for await (const snapshot of events("engine/events")) this.show(snapshot);
      } catch (error) {
        if (error.status === 401) await this.onKeyNeeded();
      }
      const health = await call("health").then(() => "", (error) => error.status === 503 ? "starting or stopping" : "not there");
      if (health) this.state(health === "not there" ? "gone" : "loading", `the server is ${health}`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  show(snapshot) {
    this.snapshot = snapshot;
    this.minute.add(snapshot);
    snapshot.ttft_ms = []; snapshot.itl_ms = []; snapshot.tokens = 0;  // counted, should it be shown again
    const { running, waiting, num_waiting: waitingCount, blocks_total: total, blocks_free: free } = snapshot;
    forgetAllBut(new Set([...running, ...waiting].map(([id]) => id)));
    $("running").textContent = running.length;
    $("slots").textContent = ` of ${snapshot.max_num_seqs}`;
    $("waiting").textContent = waitingCount;
    $("preemptions").textContent = snapshot.preemptions;
    this.drafts(snapshot);
    const cached = snapshot.num_cached, used = total - free - cached;
    $("used").textContent = used;
    $("total").textContent = total;
    this.pills($("running-list"), running, running.length, (row) => row[3], "written");
    this.pills($("waiting-list"), waiting, waitingCount, (row) => row[2] + row[3], "waiting");
    $("legend-cached").hidden = !snapshot.prefix_queries && !cached;
    this.pool.update(snapshot);
    this.caption();
    const busy = running.length + waitingCount > 0;
    this.state(busy ? "busy" : "idle", busy ? `${running.length} running, ${waitingCount} waiting` : "idle");
    if (!busy || performance.now() - this.spoken > 2000) {  // no more often: a screen reader reads it out
      this.spoken = performance.now();
      $("pool").setAttribute("aria-label", `The block pool: ${used} of ${total} blocks in use by ${running.length} sequences, ${cached} cached`);
    }
  }

  pills(list, rows, count, tokens, verb) {
    const shown = rows.slice(0, mostPills()), more = count - shown.length;
    while (list.children.length > shown.length) list.lastChild.remove();
    shown.forEach((row, index) => {
      const item = list.children[index] ?? list.appendChild(document.createElement("li"));
      const [id, part, prompt, output] = row, mine = this.mine.has(id);
      item.dataset.id = id;
      item.className = mine ? "mine" : "";
      item.title = `${id}${part ? `, completion ${part + 1}` : ""}: prompt of ${prompt} tokens, ${output} tokens written`;
      item.style.setProperty("--colour", verb === "written" ? colour(id) : "transparent");
      item.textContent = mine ? `you ${tokens(row)}` : tokens(row);
    });
    if (more > 0) {
      const item = list.appendChild(document.createElement("li"));
      item.className = "more";
      item.textContent = `and ${more} more`;
    }
  }

  drafts({ draft_tokens: drafts, accepted_tokens: accepted, mean_accepted_length: length }) {
    $("drafts").hidden = !drafts;
    if (drafts) $("drafts").textContent = `${Math.round(100 * accepted / drafts)} % of ${format(drafts)} draft tokens accepted, ${length.toFixed(1)} tokens per draft step · `;
  }

  pick(id) {
    this.picked = id;
    this.pool.highlight(id);
    this.caption();
  }

  caption() {
    const { snapshot } = this;
    if (!snapshot) return;
    const row = this.picked && snapshot.running.find(([id]) => id === this.picked);
    if (row) {
      $("pool-caption").textContent = `${this.mine.has(row[0]) ? "Your chat" : row[0]}: ${row[2]} prompt + ${row[3]} output tokens in ${row[6]} blocks`;
    } else if (!snapshot.blocks_total) {
      $("pool-caption").textContent = "This engine keeps no KV cache.";
    } else {
      const share = snapshot.blocks_per_square, size = snapshot.block_size;
      const what = share > 1
        ? `A square is ${share} blocks of ${size} tokens of KV cache. Its colour is the request that holds most of them, its height the share that is written.`
        : `A square is one block of ${size} tokens of KV cache. Its colour is the request that holds it.`;
      $("pool-caption").textContent = `${what}${this.prefixes()}`;
    }
  }

  prefixes() {
    const { prefix_queries: queries, prefix_hits: hits } = this.snapshot;
    return queries ? ` Cached blocks: ${Math.round(100 * hits / queries)} % of all prompt tokens were found there.` : "";
  }

  showMinute() {
    const label = (ms) => duration(ms).join(" ");
    const { minute } = this, ttft = minute.all("ttft"), itl = minute.all("itl");
    $("rate").textContent = format(Math.round(minute.rate()));
    for (const [name, values] of [["ttft", ttft], ["itl", itl]]) {
      const [number, unit] = duration(quantile(values, 0.5));
      $(name).textContent = number;
      $(`${name}-more`).textContent = values.length ? `${unit}, p95 ${duration(quantile(values, 0.95)).join(" ")}` : "";
    }
    chart($("rate-chart"), minute.series((bucket) => bucket.tokens));
    chart($("ttft-chart"), minute.series((bucket) => (bucket.ttft.length ? quantile(bucket.ttft, 0.5) : null)), { dots: true, label });
    chart($("itl-chart"), minute.series((bucket) => (bucket.itl.length ? quantile(bucket.itl, 0.5) : null)), { dots: true, label });
  }

  state(name, text) {
    if ($("status").dataset.state !== name) $("status").dataset.state = name;
    if ($("status-text").textContent !== text) $("status-text").textContent = text;
  }
}
