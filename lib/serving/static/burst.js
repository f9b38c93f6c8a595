// Many prompts at once, to see them batched, queued and, beyond the server's limit, refused.

import { call } from "./api.js";

const $ = (id) => document.getElementById(id);
const CALLS = 4;  // a browser opens six connections to a server at most, and two are taken
const TOPICS = ["a lighthouse", "the first rain in spring", "two chess players", "a train at night", "a lost letter",
  "bread", "a very small dragon", "the sea", "an old clock", "a market in the morning", "snow", "a borrowed book"];

export class Burst {
  constructor() {
    this.running = null;
    $("burst").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    $("burst-stop").addEventListener("click", () => this.running?.abort());
  }

  begin(model) { this.model = model; }

  async send() {
    if (this.running || !this.model) return;
    const count = Math.max(1, Number($("burst-count").value) || 1), most = Math.max(1, Number($("burst-tokens").value) || 1);
    this.running = new AbortController();
    $("burst-stop").disabled = false;
    $("burst-send").disabled = true;
    const began = performance.now(), calls = Math.min(CALLS, count);
    let done = 0, tokens = 0;
    const refusals = new Map();
    const show = () => {
      const refused = [...refusals].map(([why, number]) => ` · ${number} refused: ${why}`).join("");
      $("burst-result").textContent = `${done} of ${count} done${refused}`;
    };
    show();
    await Promise.all(Array.from({ length: calls }, async (_, index) => {
      const size = Math.floor(count / calls) + (index < count % calls ? 1 : 0);
      const prompts = Array.from({ length: size }, (_, number) => this.prompt(number * calls + index));
      // Different lengths, so that some end early and others take their place.
      const max_tokens = Math.max(1, Math.round(most * (1 - index / (calls + 1))));
      try {
        const response = await call("v1/completions", { prompt: prompts, max_tokens, ignore_eos: true }, this.running.signal);
        tokens += (await response.json()).usage.completion_tokens;
        done += size;
      } catch (error) {
        const why = error.name === "AbortError" ? "stopped" : error.status ? `${error.status}, ${error.message}` : "the server is not there";
        refusals.set(why, (refusals.get(why) ?? 0) + size);
      }
      show();
    }));
    const seconds = (performance.now() - began) / 1000;
    if (tokens) $("burst-result").textContent += ` · ${tokens} tokens in ${seconds.toFixed(1)} s, ${Math.round(tokens / seconds)} tokens/s`;
    this.running = null;
    $("burst-stop").disabled = true;
    $("burst-send").disabled = false;
  }

  prompt(number) {
    if (!this.model.text) return Array.from({ length: 8 + (number * 13) % 40 }, (_, index) => (number * 31 + index * 7) % 250 + 1);
    const topic = TOPICS[number % TOPICS.length];
    return `Chapter ${number + 1}. A story about ${topic}` + ", and what came of it".repeat(number % 5) + ".\n\n";
  }
}
