// The chat: a conversation that streams, and can be stopped.

import { events } from "./api.js";

const $ = (id) => document.getElementById(id);

// Adds text to an element; the spans, in characters, are parts that accepted drafts made. Returns whether there are any.
function append(element, text, spans) {
  const characters = [...text];
  let end = 0;
  const plain = (until) => { if (until > end) element.append(characters.slice(end, until).join("")); };
  for (const [from, to] of spans ?? []) {
    plain(from);
    const part = element.appendChild(document.createElement("span"));
    part.className = "draft";
    part.textContent = characters.slice(from, end = to).join("");
  }
  plain(characters.length);
  return Boolean(spans?.length);
}

export class Chat {
  constructor(mine) {
    this.mine = mine;
    this.messages = [];
    this.model = null;
    this.running = null;  // an AbortController while an answer comes
    $("composer").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.send(); }
    });
    $("stop").addEventListener("click", () => this.running?.abort());
    $("clear").addEventListener("click", () => this.clear());
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.running?.abort(); });
    for (const name of ["temperature", "top_p"])
      $(name).addEventListener("input", () => { $(`${name}-value`).textContent = $(name).value; });
  }

  begin(model) {
    this.model = model;
    const able = model.chat || model.text;
    $("prompt").disabled = $("send").disabled = !able;
    if (!able) $("hint").textContent = "This model has no tokenizer, so it cannot chat. The burst works: it sends token ids.";
    else if (!model.chat) $("hint").textContent = "This model continues text. Begin a sentence, and it goes on.";
  }

  clear() {
    this.running?.abort();
    this.messages = [];
    $("log").replaceChildren($("hint"));
    $("hint").hidden = false;
    $("prompt").focus();
  }

  async send() {
    const text = $("prompt").value.trim();
    if (!text || this.running || !this.model) return;
    $("prompt").value = "";
    $("hint").hidden = true;
    this.turn("user", text);
    this.messages.push({ role: "user", content: text });
    const messages = this.messages, answer = this.turn("assistant", "");
    this.busy(new AbortController());
    answer.classList.add("writing");
    const [body, meta] = answer.children, began = performance.now();
    let id, first, tokens = 0, reason = null, content = "", drafted = false;
    try {
      for await (const chunk of events(...this.question(text), this.running.signal)) {
        this.mine.add(id = chunk.id);
        if (chunk.usage) tokens = chunk.usage.completion_tokens;
        const choice = chunk.choices[0];
        if (!choice) continue;
        first ??= performance.now();
        const text = choice.text ?? choice.delta.content ?? "";
        content += text;
        reason = choice.finish_reason ?? reason;
        drafted = append(body, text, choice.draft_spans) || drafted;
        this.scroll();
      }
      messages.push({ role: "assistant", content });
    } catch (error) {
      if (error.name === "AbortError") {
        reason = "stopped";
        messages.push({ role: "assistant", content });  // what was said was said
      } else {
        answer.classList.add("error");
        body.textContent = content + (content ? "\n\n" : "") + error.message;
        messages.pop();
      }
    }
    const seconds = (performance.now() - first) / 1000;
    meta.textContent = [first && `first token ${Math.round(first - began)} ms`,
      tokens > 1 && `${tokens} tokens`, tokens > 1 && `${((tokens - 1) / seconds).toFixed(1)} tokens/s`,
      drafted && "coloured: drafts that the model accepted", reason === "length" && "cut at the longest answer", reason === "stopped" && "stopped"].filter(Boolean).join(" · ");
    answer.classList.remove("writing");
    this.mine.delete(id);
    this.busy(null);
    this.scroll();
  }

  question(text) {
    const sampling = { stream: true, stream_options: { include_usage: true }, return_draft_spans: true };
    for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"])
      if ($(name).value !== "") sampling[name] = Number($(name).value);
    return this.model.chat ? ["v1/chat/completions", { ...sampling, messages: this.messages }]
      : ["v1/completions", { ...sampling, prompt: text }];
  }

  turn(role, text) {
    const turn = document.createElement("div");
    turn.className = `turn ${role}`;
    for (const [name, content] of [["text", text], ["meta", ""]]) {
      if (role === "user" && name === "meta") continue;
      const part = turn.appendChild(document.createElement("span"));
      part.className = name;
      part.textContent = content;
    }
    $("log").append(turn);
    this.scroll(true);
    return turn;
  }

  scroll(always) {
    const log = $("log");
    if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
  }

  busy(controller) {
    const stopHadFocus = document.activeElement === $("stop");
    this.running = controller;
    $("send").hidden = controller !== null;
    $("stop").hidden = controller === null;
    $("log").setAttribute("aria-busy", controller !== null);  // read out when it is whole, not word by word
    if (stopHadFocus) $("prompt").focus();
  }
}
