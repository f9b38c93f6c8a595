// The block pool: a cell a block (or a few blocks, where there are very many), coloured by its request, filled as it fills.

import { colour, css, reduced, surface } from "./colours.js";

const FADE = 350;  // ms for a block to appear and to go
const GAP = 2, SMALLEST = 7;

export class Pool {
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.cells = [];       // { id, level, was, since }
    this.snapshot = null;
    this.highlighted = null;
    this.frame = 0;
    new ResizeObserver(() => { if (this.snapshot) this.update(this.snapshot); }).observe(canvas);
    canvas.addEventListener("pointermove", (event) => onPick(this.at(event)));
    canvas.addEventListener("pointerleave", () => onPick(null));
  }

  update(snapshot) {
    this.snapshot = snapshot;
    const { width, height } = this.canvas.getBoundingClientRect();
    const total = snapshot.blocks_total;
    this.share = 1;        // blocks a cell
    const fits = () => Math.floor((width + GAP) / SMALLEST) * Math.floor((height + GAP) / SMALLEST);
    while (total / this.share > Math.max(1, fits())) this.share *= 2;
    const count = Math.ceil(total / this.share);
    this.pitch = Math.min(26, Math.max(SMALLEST, Math.floor(Math.sqrt((width + GAP) * (height + GAP) / Math.max(1, count)))));
    while (this.pitch > SMALLEST &&
      Math.floor((width + GAP) / this.pitch) * Math.floor((height + GAP) / this.pitch) < count) this.pitch -= 1;
    this.columns = Math.max(1, Math.floor((width + GAP) / this.pitch));

    const levels = new Float32Array(count), owners = new Array(count).fill(null);
    for (const [id, , , , computed, blocks] of snapshot.running) {
      blocks.forEach((block, index) => {
        const cell = Math.floor((block - snapshot.first_block) / this.share);
        const filled = Math.min(1, Math.max(0.12, computed / snapshot.block_size - index));
        owners[cell] ??= id;
        levels[cell] += filled / this.share;
      });
    }
    const now = performance.now();
    if (this.cells.length !== count) this.cells = owners.map(() => ({ id: null, level: 0, was: null, since: -FADE }));
    this.cells.forEach((cell, index) => {
      if (cell.id !== owners[index]) Object.assign(cell, { was: cell.id, wasLevel: cell.level, since: now, id: owners[index] });
      cell.level = levels[index];
    });
    this.until = now + FADE;
    this.request();
  }

  highlight(id) {
    if (this.highlighted !== id) { this.highlighted = id; this.request(); }
  }

  request() {
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    const { context } = surface(this.canvas);
    const now = performance.now(), size = this.pitch - GAP, empty = css("--faint"), known = new Map();
    const paint = (id) => known.get(id) ?? known.set(id, colour(id)).get(id);
    this.cells.forEach((cell, index) => {
      const x = (index % this.columns) * this.pitch, y = Math.floor(index / this.columns) * this.pitch;
      const progress = reduced.matches ? 1 : Math.min(1, (now - cell.since) / FADE);
      box(context, x, y, size, size, empty, 1);
      if (cell.was !== null && progress < 1) fill(context, x, y, size, cell.wasLevel, paint(cell.was), 1 - progress);
      if (cell.id !== null) {
        const dim = this.highlighted !== null && this.highlighted !== cell.id ? 0.22 : 1;
        fill(context, x, y, size, cell.level, paint(cell.id), progress * dim);
      }
    });
    if (now < this.until) this.request();
  }

  at(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - left) / this.pitch);
    if (column >= this.columns) return null;
    return this.cells[Math.floor((event.clientY - top) / this.pitch) * this.columns + column]?.id ?? null;
  }
}

function box(context, x, y, width, height, style, alpha) {
  context.globalAlpha = alpha;
  context.fillStyle = style;
  context.beginPath();
  context.roundRect(x, y, width, height, Math.min(3, width / 4));
  context.fill();
  context.globalAlpha = 1;
}

function fill(context, x, y, size, level, style, alpha) {
  box(context, x, y, size, size, style, alpha * 0.3);  // owned, though not yet written
  const height = Math.max(2, Math.min(1, level) * size);
  box(context, x, y + size - height, size, height, style, alpha);
}
