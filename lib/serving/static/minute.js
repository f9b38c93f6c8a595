// The last minute, second by second: tokens, times to first token, inter-token latencies.

const SECONDS = 60;

export class Minute {
  constructor() { this.buckets = new Map(); }

  add({ tokens, ttft_ms: ttft, itl_ms: itl }) {
    const bucket = this.bucket(this.now());
    bucket.tokens += tokens;
    bucket.ttft.push(...ttft);
    for (const pair of itl) bucket.itl.push(pair);
  }

  now() { return Math.floor(performance.now() / 1000); }

  bucket(second) {
    if (!this.buckets.has(second)) {
      this.buckets.set(second, { tokens: 0, ttft: [], itl: [] });
      for (const old of this.buckets.keys()) if (old <= second - SECONDS) this.buckets.delete(old);
    }
    return this.buckets.get(second);
  }

  // For each of the last 60 seconds, oldest first: read(bucket), or null where nothing happened.
  series(read) {
    const now = this.now();
    return Array.from({ length: SECONDS }, (_, index) => {
      const bucket = this.buckets.get(now - SECONDS + 1 + index);
      return bucket ? read(bucket) : null;
    });
  }

  // Tokens a second over the last two whole seconds and the running one.
  rate() {
    const now = performance.now() / 1000, second = Math.floor(now);
    const tokens = [0, 1, 2].reduce((sum, back) => sum + (this.buckets.get(second - back)?.tokens ?? 0), 0);
    return tokens / (2 + now - second);
  }

  all(name) { return this.series((bucket) => bucket[name]).flatMap((values) => values ?? []); }
}

// Of numbers, or of [number, count] pairs.
export function quantile(values, q) {
  const pairs = values.map((value) => (Array.isArray(value) ? value : [value, 1])).sort((a, b) => a[0] - b[0]);
  let left = q * pairs.reduce((sum, [, count]) => sum + count, 0);
  for (const [value, count] of pairs) {
    left -= count;
    if (left <= 0) return value;
  }
  return null;
}
