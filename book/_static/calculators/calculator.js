"use strict";
/* The frame of the book's calculators: fields, results, and a drawing that follows the width of its column.

A calculator is an object in `Calculators`, by its name:
  fields(presets)            [{name, label, options | values | min, max, step, unit, allowed}], in order;
                             allowed(values, presets, option): whether a field, or an option of it, can be chosen
  initial(presets)           {name: value} of all fields
  choose(name, values, presets)   optional: what else changes when a field changes
  compute(values, presets)   the arithmetic: plain numbers, which a test compares with lib's
  rows(result, values)       [[label, text]]: the results as words
  draw(result, width, values, redraw)   an SVG element
  actions(values)            optional: [[label, function]], buttons that change `values`
A page has <div class="calculator" data-calculator="name"> with its presets as JSON inside. */

const Calculators = {};

const CalculatorDom = {
  html(tag, attributes = {}, ...children) {
    return CalculatorDom.fill(document.createElement(tag), attributes, children);
  },
  svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    return CalculatorDom.fill(element, attributes, children);
  },
  fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  },
};

const CalculatorText = {
  /* A number with at most `digits` digits, and commas between thousands: 1,234 or 0.0123. */
  number(value, digits = 3) {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    return String(Number(value.toPrecision(digits)));
  },
  bytes(value) {
    const units = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]];
    const [size, unit] = units.find(([least]) => value >= least) || [1, "B"];
    return `${CalculatorText.number(value / size)} ${unit}`;
  },
  seconds(value) {
    const units = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]];
    const [size, unit] = units.find(([least]) => value >= least) || [1e-6, "µs"];
    return value === 0 ? "0 s" : `${CalculatorText.number(value / size)} ${unit}`;
  },
};

(function () {
  const { html } = CalculatorDom;

  function slider(spec, id, value, change) {
    const places = spec.values;
    const text = (v) => `${CalculatorText.number(v, 4)}${spec.unit ? " " + spec.unit : ""}`;
    const output = html("output", { for: id }, text(value));
    const input = html("input", {
      type: "range", id,
      min: places ? 0 : spec.min, max: places ? places.length - 1 : spec.max, step: places ? 1 : spec.step,
      "aria-valuetext": text(value),
      input: () => change(places ? places[Number(input.value)] : Number(input.value)),
    });
    const write = (v) => {
      input.value = places ? places.indexOf(v) : v;
      input.setAttribute("aria-valuetext", text(v));
      output.textContent = text(v);
    };
    write(value);
    const allow = (allowed) => { input.disabled = !allowed(); };
    return { parts: [html("label", { for: id }, spec.label), output, input], write, allow };
  }

  function choice(spec, id, value, change) {
    const options = spec.options.map(([v, label]) => html("option", { value: v }, label));
    const input = html("select", { id, change: () => change(input.value) }, ...options);
    const write = (v) => { input.value = v; };
    write(value);
    const allow = (allowed) => options.forEach((option) => { option.disabled = !allowed(option.value); });
    return { parts: [html("label", { for: id }, spec.label), input], write, allow };
  }

  function build(box) {
    const name = box.dataset.calculator, calculator = Calculators[name];
    const presets = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    const values = calculator.initial(presets);
    const fields = {}, form = html("form", { class: "calculator-fields", submit: (e) => e.preventDefault() });
    const specs = calculator.fields(presets);
    for (const spec of specs) {
      const change = (value) => {
        values[spec.name] = value;
        calculator.choose?.(spec.name, values, presets);
        refresh();
      };
      const make = spec.options ? choice : slider;
      fields[spec.name] = make(spec, `${box.id}-${spec.name}`, values[spec.name], change);
      form.append(html("div", { class: "calculator-field" }, ...fields[spec.name].parts));
    }
    const buttons = html("div", { class: "calculator-actions" });
    for (const [label, action] of calculator.actions?.(values, presets) || []) {
      buttons.append(html("button", { type: "button", click: () => { action(); refresh(); } }, label));
    }
    const results = html("dl", { class: "calculator-results", "aria-live": "polite" });
    const drawing = html("div", { class: "calculator-drawing" });
    let width = 0;
    function refresh() {
      for (const { name: field, allowed } of specs) {
        fields[field].write(values[field]);
        if (allowed) fields[field].allow((option) => allowed(values, presets, option));
      }
      const result = calculator.compute(values, presets), rows = calculator.rows(result, values, presets);
      results.replaceChildren(...rows.map(([label, text]) =>
        html("div", {}, html("dt", {}, label), html("dd", {}, text))));
      if (width) drawing.replaceChildren(calculator.draw(result, width, values, refresh, presets));
    }
    box.append(form, buttons.children.length ? buttons : "", results, drawing);
    new ResizeObserver(([entry]) => {
      const now = Math.floor(entry.contentRect.width);
      if (now && now !== width) { width = now; refresh(); }
    }).observe(drawing);
    refresh();
    box.classList.add("calculator-ready");
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".calculator").forEach((box, i) => {
      box.id = `calculator-${i + 1}`;
      build(box);
    });
  });
})();
