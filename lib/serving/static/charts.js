// Sixty seconds in a tile: an area or dots, with its highest value written in the corner.

import { css, surface } from "./colours.js";

const TOP = 12;

export function chart(canvas, values, { dots = false, label = format } = {}) {
  const { context, width, height } = surface(canvas);
  context.clearRect(0, 0, width, height);
  const present = values.filter((value) => value !== null);
  const highest = Math.max(...present, 0);
  const x = (index) => (index / (values.length - 1)) * (width - 4) + 2;
  const y = (value) => height - 3 - (highest ? (value / highest) * (height - TOP - 6) : 0);
  const accent = css("--accent");
  context.strokeStyle = css("--line");
  context.beginPath();
  context.moveTo(0, height - 1.5);
  context.lineTo(width, height - 1.5);
  context.stroke();
  if (!highest) return;
  context.fillStyle = css("--soft");
  context.font = `10px ${css("--sans")}`;
  context.textAlign = "right";
  context.fillText(label(highest), width, 9);
  context.fillStyle = context.strokeStyle = accent;
  if (dots) {
    values.forEach((value, index) => {
      if (value === null) return;
      context.beginPath();
      context.arc(x(index), y(value), 2.2, 0, 2 * Math.PI);
      context.fill();
    });
    return;
  }
  context.lineWidth = 1.6;
  context.lineJoin = "round";
  context.beginPath();
  values.forEach((value, index) => context.lineTo(x(index), y(value ?? 0)));
  context.stroke();
  context.lineTo(x(values.length - 1), height - 2);
  context.lineTo(x(0), height - 2);
  context.globalAlpha = 0.14;
  context.fill();
  context.globalAlpha = 1;
}

export function format(value) {
  if (value === null) return "–";
  if (value >= 10000) return `${Math.round(value / 1000)}k`;
  return value >= 100 || value % 1 === 0 ? value.toFixed(0) : value.toFixed(1);
}

// Milliseconds as [number, unit] that fit into a tile.
export function duration(ms) {
  if (ms === null) return ["–", ""];
  return ms < 1000 ? [format(ms), "ms"] : [(ms / 1000).toFixed(ms < 10000 ? 1 : 0), "s"];
}
