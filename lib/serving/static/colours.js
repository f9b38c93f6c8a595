// One hue a request, far from the hues just before it (the golden angle), the same in the queue and in the pool.

const hues = new Map();
let next = 0;

export function hue(id) {
  if (!hues.has(id)) hues.set(id, (175 + 137.508 * next++) % 360);
  return hues.get(id);
}

export function forgetAllBut(ids) {
  for (const id of hues.keys()) if (!ids.has(id)) hues.delete(id);
}

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function colour(id) {
  return `oklch(${css("--request-light")} ${css("--request-chroma")} ${hue(id)})`;
}

export const reduced = matchMedia("(prefers-reduced-motion: reduce)");
export const dark = matchMedia("(prefers-color-scheme: dark)");

// A canvas sized to its box in device pixels, drawn in CSS pixels. `fresh`: its size changed, which empties it.
export function surface(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const fresh = canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio);
  if (fresh) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height, fresh };
}
