// The block pool: a cell a block (or a few blocks, where there are very many), coloured by its request, filled as it fills.

import { colour, css, reduced, surface } from "./colours.js";

const FADE = 350;  // ms for a block to appear and to go
const FRAME = 40;  // ms between two pictures: the engine needs the processor more
const GAP = 2, SMALLEST = 7;

export class Pool {
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.cells = [];       // { id, level, was, since }
    this.snapshot = null;
    this.highlighted = null;
    this.frame = this.drawn = this.until = 0;
    new ResizeObserver(() => { if (this.snapshot) this.update(this.snapshot); }).observe(canvas);
    canvas.addEventListener("pointermove", (event) => onPick(this.at(event)));
    canvas.addEventListener("pointerleave", () => onPick(null));
  }

  update(snapshot) {
    this.snapshot = snapshot;
    const { width } = this.canvas.getBoundingClientRect(), height = innerWidth > 860 ? 230 : 190;
    const total = snapshot.blocks_total;
    this.share = 1;        // blocks a cell
    const fits = () => Math.floor((width + GAP) / SMALLEST) * Math.floor((height + GAP) / SMALLEST);
    while (total / this.share > Math.max(1, fits())) this.share *= 2;
    const count = Math.ceil(total / this.share);
    this.pitch = Math.min(26, Math.max(SMALLEST, Math.floor(Math.sqrt((width + GAP) * (height + GAP) / Math.max(1, count)))));
    while (this.pitch > SMALLEST &&
      Math.floor((width + GAP) / this.pitch) * Math.floor((height + GAP) / this.pitch) < count) this.pitch -= 1;
    this.columns = Math.max(1, Math.floor((width + GAP) / this.pitch));
    this.canvas.style.height = `${Math.max(1, Math.ceil(count / this.columns)) * this.pitch}px`;

    const levels = new Float32Array(count), owners = new Array(count).fill(null);
    for (const [id, , , , computed, blocks] of snapshot.running) {
      blocks.forEach((block, index) => {
        const cell = Math.floor((block - snapshot.first_block) / this.share);
        const filled = Math.min(1, Math.max(0.12, computed / snapshot.block_size - index));
        owners[cell] ??= id;
        levels[cell] += filled / this.share;
      });
    }
    const kept = new Float32Array(count);
    for (const block of snapshot.blocks_cached ?? []) kept[Math.floor((block - snapshot.first_block) / this.share)] += 1 / this.share;
    const now = performance.now();
    if (this.cells.length !== count) this.cells = owners.map(() => ({ id: null, level: 0, was: null, since: -FADE }));
    this.cells.forEach((cell, index) => {
      if (cell.id !== owners[index]) {
        Object.assign(cell, { was: cell.id, wasLevel: cell.level, since: now, id: owners[index] });
        this.until = now + FADE;
      }
      cell.level = levels[index];
      cell.kept = kept[index];
    });
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
    const now = performance.now();
    if (now < this.until) this.request();
    if (now - this.drawn < FRAME && now < this.until) return;
    this.drawn = now;
    const { context, width, height, fresh } = surface(this.canvas);
    const moved = fresh || this.shape !== `${this.pitch} ${this.cells.length}`;
    this.shape = `${this.pitch} ${this.cells.length}`;
    if (moved) context.clearRect(0, 0, width, height);
    const size = this.pitch - GAP, empty = css("--faint"), known = new Map();
    const paint = (id) => known.get(id) ?? known.set(id, colour(id)).get(id);
    this.cells.forEach((cell, index) => {
      const progress = reduced.matches ? 1 : Math.min(1, (now - cell.since) / FADE);
      const dim = this.highlighted !== null && this.highlighted !== cell.id ? 0.22 : 1;
      const look = `${cell.id} ${Math.round(cell.level * size)} ${progress} ${cell.id && dim} ${cell.kept} ${empty}`;
      if (look === cell.look && !moved) return;  // most cells, most of the time
      cell.look = look;
      const x = (index % this.columns) * this.pitch, y = Math.floor(index / this.columns) * this.pitch;
      context.clearRect(x - 1, y - 1, this.pitch, this.pitch);
      box(context, x, y, size, size, empty, 1);
      if (cell.kept) box(context, x, y, size, size, css("--kept"), Math.min(1, cell.kept));
      if (cell.was !== null && progress < 1) fill(context, x, y, size, cell.wasLevel, paint(cell.was), 1 - progress);
      if (cell.id !== null) fill(context, x, y, size, cell.level, paint(cell.id), progress * dim);
    });
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
