// The block pool: one square per block, coloured by its request, filled as tokens are written. Of a pool with more blocks
// than the server names one by one, a square is several blocks and the server sends a summary of each square.

import { colour, css, reduced, surface } from "./colours.js";

const FADE = 350;  // ms for a block to appear and to go
const FRAME = 40;  // ms between two pictures: the engine needs the processor more
const GAP = 2, SMALLEST = 7;  // px; beyond what fits at this size, the picture grows in height

export class Pool {
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.cells = [];       // { id, level, held, kept, was, since }: shares of the square that are written, in use, cached
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
    const count = Math.ceil(snapshot.blocks_total / snapshot.blocks_per_square);
    this.pitch = Math.min(26, Math.max(SMALLEST, Math.floor(Math.sqrt((width + GAP) * (height + GAP) / Math.max(1, count)))));
    while (this.pitch > SMALLEST &&
      Math.floor((width + GAP) / this.pitch) * Math.floor((height + GAP) / this.pitch) < count) this.pitch -= 1;
    this.columns = Math.max(1, Math.floor((width + GAP) / this.pitch));
    this.canvas.style.height = `${Math.max(1, Math.ceil(count / this.columns)) * this.pitch}px`;
    const { levels, owners, held, kept } = snapshot.blocks_per_square > 1 ? summed(snapshot, count) : oneByOne(snapshot, count);
    const now = performance.now();
    if (this.cells.length !== count) this.cells = owners.map(() => ({ id: null, level: 0, held: 0, kept: 0, was: null, since: -FADE }));
    this.cells.forEach((cell, index) => {
      if (cell.id !== owners[index]) {
        Object.assign(cell, { was: cell.id, wasLevel: cell.level, wasHeld: cell.held, since: now, id: owners[index] });
        this.until = now + FADE;
      }
      cell.level = levels[index];
      cell.held = held[index];
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
    const size = this.pitch - GAP, empty = css("--faint"), keptColour = css("--kept"), known = new Map();
    const paint = (id) => known.get(id) ?? known.set(id, colour(id)).get(id);
    this.cells.forEach((cell, index) => {
      const progress = reduced.matches ? 1 : Math.min(1, (now - cell.since) / FADE);
      const dim = this.highlighted !== null && this.highlighted !== cell.id ? 0.22 : 1;
      const look = `${cell.id} ${Math.round(cell.level * size)} ${Math.round(cell.held * size)} ${progress} ${cell.id && dim} ${cell.kept} ${empty}`;
      if (look === cell.look && !moved) return;  // most cells, most of the time
      cell.look = look;
      const x = (index % this.columns) * this.pitch, y = Math.floor(index / this.columns) * this.pitch;
      context.clearRect(x - 1, y - 1, this.pitch, this.pitch);
      box(context, x, y, size, size, empty, 1);
      if (cell.kept) bar(context, x, y, size, cell.held, cell.held + cell.kept, keptColour, 1);
      if (cell.was !== null && progress < 1) fill(context, x, y, size, cell.wasLevel, cell.wasHeld, paint(cell.was), 1 - progress);
      if (cell.id !== null) fill(context, x, y, size, cell.level, cell.held, paint(cell.id), progress * dim);
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

// A band of a square, between two shares of its height from the bottom.
function bar(context, x, y, size, from, to, style, alpha) {
  const top = Math.min(1, to) * size, bottom = Math.min(1, from) * size;
  box(context, x, y + size - top, size, Math.max(2, top - bottom), style, alpha);
}

function fill(context, x, y, size, level, held, style, alpha) {
  bar(context, x, y, size, 0, held, style, alpha * 0.3);  // in use, though not yet written
  bar(context, x, y, size, 0, level, style, alpha);
}

const LEAST = 0.12;  // a block that is taken and empty is seen all the same

function nothing(count) {
  const zeros = () => new Float32Array(count);
  return { levels: zeros(), owners: new Array(count).fill(null), held: zeros(), kept: zeros() };
}

function oneByOne({ running, blocks_cached, block_size, first_block }, count) {
  const { levels, owners, held, kept } = nothing(count);
  for (const [id, , , , computed, blocks] of running) {
    blocks.forEach((block, index) => {
      const cell = block - first_block;  // several requests may share it: the first one gives the colour
      owners[cell] ??= id;
      held[cell] = 1;
      levels[cell] = Math.max(levels[cell], Math.min(1, Math.max(LEAST, computed / block_size - index)));
    });
  }
  for (const block of blocks_cached) kept[block - first_block] = 1;
  return { levels, owners, held, kept };
}

function summed({ running, squares, block_size, blocks_per_square, blocks_total }, count) {
  const { levels, owners, held, kept } = nothing(count);
  for (const [cell, index, inUse, written, cached] of squares) {
    const blocks = Math.min(blocks_per_square, blocks_total - cell * blocks_per_square);  // the last square has fewer
    if (inUse) {
      owners[cell] = running[index][0];
      held[cell] = Math.max(LEAST, inUse / blocks);
      levels[cell] = written / (blocks * block_size);
    }
    kept[cell] = cached / blocks;
  }
  return { levels, owners, held, kept };
}
