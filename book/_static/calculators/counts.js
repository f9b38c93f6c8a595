"use strict";
/* Parameters, bytes and operations of a model from its shape: lib/bench/measure/counts.py in JavaScript.
And the time of a step between measured points. */

const Counts = {
  bytesPerNumber: { float32: 4, bfloat16: 2, int8: 1 },

  layerMatrices(m) {
    const q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim, d = m.hidden_size;
    return d * (q + 2 * kv) + q * d + (m.architecture === "gpt2" ? 2 : 3) * d * m.intermediate_size;
  },
  layerVectors(m) {
    const d = m.hidden_size, f = m.intermediate_size;
    const qkv = (m.num_heads + 2 * m.num_kv_heads) * m.head_dim;
    if (m.architecture === "gpt2") return 4 * d + qkv + d + f + d;
    return 2 * d + (m.attention_bias ? qkv + d : 0) + (m.mlp_bias ? 2 * f + d : 0);
  },
  parameters(m) {
    const d = m.hidden_size, gpt2 = m.architecture === "gpt2";
    const embeddings = m.vocab_size * d + (gpt2 ? m.max_position_embeddings * d : 0);
    const head = m.tie_word_embeddings ? 0 : m.vocab_size * d;
    const layers = m.num_layers * (Counts.layerMatrices(m) + Counts.layerVectors(m));
    return embeddings + layers + (gpt2 ? 2 * d : d) + head;
  },
  weightBytes(m, dtype) {
    return Counts.parameters(m) * Counts.bytesPerNumber[dtype];
  },
  /* Weight bytes that a step reads: all but the tables of which it reads single rows. */
  streamedBytes(m, dtype) {
    let tables = m.architecture === "gpt2" ? m.max_position_embeddings * m.hidden_size : 0;
    if (!m.tie_word_embeddings) tables += m.vocab_size * m.hidden_size;
    return (Counts.parameters(m) - tables) * Counts.bytesPerNumber[dtype];
  },
  kvBytesPerToken(m, dtype) {
    return 2 * m.num_layers * m.num_kv_heads * m.head_dim * Counts.bytesPerNumber[dtype];
  },
  /* Operations of one token with `length` tokens in the cache, itself included. */
  decodeFlops(m, length) {
    const attention = 4 * length * m.num_heads * m.head_dim;
    return m.num_layers * (2 * Counts.layerMatrices(m) + attention) + 2 * m.hidden_size * m.vocab_size;
  },
  /* Seconds of a step of n rows: linear between measured points, as CostCurve in lib/engine/speculation. */
  stepTime({ rows, seconds }, n) {
    const rising = seconds.map((_, i) => Math.max(...seconds.slice(0, i + 1)));
    const last = rows.length - 1;
    if (n <= rows[0]) return rising[0];
    if (n > rows[last]) {
      const slopes = [0, last - 1].map((i) => (rising[last] - rising[i]) / (rows[last] - rows[i]));
      return rising[last] + Math.max(...slopes) * (n - rows[last]);
    }
    const i = rows.findIndex((r) => r >= n), part = (n - rows[i - 1]) / (rows[i] - rows[i - 1]);
    return rising[i - 1] + part * (rising[i] - rising[i - 1]);
  },
};
