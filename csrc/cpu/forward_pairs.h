#pragma once

#include "forward.h"
#include "gemm_pairs.h"

// Forward for bf16 by products of pairs: the walk of forward.h, whose scores, statistics and output
// stay fp32. P is rounded to bf16 for the product with V, after its sum.
//
// Where nothing but the mask comes between Q K^T and the softmax, scores stay unscaled, and the
// scale is part of the exponent: e^(scale * (s - m)). Its sign, if negative, is given to Q.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// Hands out a thread's tile memory, in whole cache lines.
struct Arena {
  char* next;
  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next);
    next += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }
};

struct ForwardScratchPairs {
  bf16_t *Q_lanes, *K, *V, *P;
  float *S, *O, *dropout, *bias;
  alignas(64) float m[BLOCK_Q];
  alignas(64) float l[BLOCK_Q];

  ForwardScratchPairs(const AttentionParams& p, Arena& arena) {
    const int64_t qk = round_up(p.head_dim, 2 * ROW_ALIGN);
    const int64_t v = round_up(p.value_dim, ROW_ALIGN);
    Q_lanes = arena.take<bf16_t>(BLOCK_Q * qk);
    K = arena.take<bf16_t>(BLOCK_KV * qk);
    V = arena.take<bf16_t>(BLOCK_KV * v);
    P = arena.take<bf16_t>(BLOCK_KV * BLOCK_Q);
    S = arena.take<float>(BLOCK_KV * BLOCK_Q);
    O = arena.take<float>(BLOCK_Q * v);
    dropout = arena.take<float>(BLOCK_KV * BLOCK_Q);
    bias = arena.take<float>(2 * BLOCK_KV * BLOCK_Q);
  }

  static int64_t bytes(const AttentionParams& p) {
    Arena arena{nullptr};
    ForwardScratchPairs scratch(p, arena);
    return reinterpret_cast<intptr_t>(arena.next);
  }
};

// How scores become exponents: score = unit * what the product gives.
struct ScoreUnit {
  bool flip;    // Q's signs are changed
  float scale;  // multiplied into the tile; 1 where the exponent does it
  float unit;   // of the tile's values, afterwards

  explicit ScoreUnit(const AttentionParams& p) : flip(p.scale < 0) {
    const float magnitude = static_cast<float>(flip ? -p.scale : p.scale);
    // Far from 1, dividing by the scale could leave fp32.
    const bool in_exponent = !has_score_terms(p) && magnitude > 1e-6f && magnitude < 1e6f;
    scale = in_exponent ? 1.f : magnitude;
    unit = in_exponent ? magnitude : 1.f;
  }
};

// S^T of one step, in units of `unit`.
inline void compute_scores_pairs(const QueryBlock<float>& block, const KeyStep& step,
                                 const RowsBf16& K, const bf16_t* Q_lanes, const ScoreUnit& unit,
                                 float* s, float* softcap_slope, float* bias_buffers) {
  const AttentionParams& p = block.params;
  gemm_pairs<AOrder::ROWS, false>(step.count(), block.vecs, (p.head_dim + 1) / 2, K.data, K.ld,
                                  Q_lanes, 2 * BLOCK_Q, s, BLOCK_Q);
  if (unit.scale != 1.f) scale_tile(unit.scale, step.count(), block.vecs, s);
  finish_scores(block, step, s, softcap_slope, bias_buffers);
}

// One vector of queries: m; weights, times the dropout factors if there are any, as pairs of keys;
// l.
inline void online_softmax_update_pairs(const float* s, const float* dropout, int64_t count,
                                        float unit, float* m, float* l, const OutputRows<float>& o,
                                        bf16_t* pairs) {
  using V = Vec<float>;
  const float log2_unit = unit * LOG2_E<float>;
  const V m_old = V::load(m), m_new = next_shift(s, count, m_old, static_cast<float>(SLACK) / unit);
  const V shift = finite_shift(m_new), factor = V::broadcast(log2_unit);
  const auto weight = [&](int64_t key) {
    return exp2_for_half((V::load(s + key * BLOCK_Q) - shift) * factor);
  };
  const auto store_pair = [&](int64_t key, V low, V high) {
    if (dropout != nullptr) {
      low = low * V::load(dropout + key * BLOCK_Q);
      if (key + 1 < count) high = high * V::load(dropout + (key + 1) * BLOCK_Q);
    }
    _mm512_store_si512(pairs + key * BLOCK_Q, pack_pairs(low, high).pairs);
  };
  V sum[2] = {V::broadcast(0.f), V::broadcast(0.f)};
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    const V low = weight(j), high = weight(j + 1);
    sum[0] = sum[0] + low;
    sum[1] = sum[1] + high;
    store_pair(j, low, high);
  }
  if (j < count) {
    const V low = weight(j);
    sum[0] = sum[0] + low;
    store_pair(j, low, V::broadcast(0.f));
  }
  rescale(m_old, m_new, log2_unit, sum[0] + sum[1], m, l, o);
}

inline void forward_block_pairs(const AttentionParams& p, int64_t b, int64_t h, int64_t q_begin,
                                void* memory) {
  Arena arena{static_cast<char*>(memory)};
  ForwardScratchPairs w(p, arena);
  const QueryBlock<float> block(p, b, h, q_begin);
  const ScoreUnit unit(p);
  zip_lanes(bf16_row(p.query, b, h, block.q_row()), p.query.row, block.rows, p.head_dim, unit.flip,
            w.Q_lanes);
  start_rows(block, unit.unit, w);

  const int64_t v_ld = 2 * round_up(p.value_dim, ROW_ALIGN);
  bool first = true;
  for (int64_t at = block.keys.begin / BLOCK_KV; at * BLOCK_KV < block.keys.end; ++at) {
    const KeyStep step = key_step(at, block);
    const int64_t count = step.count(), k_row = block.seq.k_start + step.begin;
    const int64_t ahead = min_of(BLOCK_KV, block.keys.end - step.end);
    prefetch_rows(p.key, p.dtype, b, block.h_kv, k_row + step.count(), ahead, p.head_dim);
    prefetch_rows(p.value, p.dtype, b, block.h_kv, k_row + step.count(), ahead, p.value_dim);
    const RowsBf16 K = load_rows_bf16(p.key, b, block.h_kv, k_row, count, p.head_dim, w.K);
    compute_scores_pairs(block, step, K, w.Q_lanes, unit, w.S, nullptr, w.bias);
    const bool drop = p.dropout.threshold != 0;
    if (drop) dropout_factors(block, step, w.dropout);
    for (int64_t lane = 0; lane < block.vecs * Vec<float>::WIDTH; lane += Vec<float>::WIDTH) {
      online_softmax_update_pairs(w.S + lane, drop ? w.dropout + lane : nullptr, count, unit.unit,
                                  w.m + lane, w.l + lane,
                                  OutputRows<float>(w.O, lane, block, first), w.P + 2 * lane);
    }
    zip_rows(bf16_row(p.value, b, block.h_kv, k_row), p.value.row, count, p.value_dim, w.V);
    const auto product =
        first ? gemm_pairs<AOrder::COLUMNS, false> : gemm_pairs<AOrder::COLUMNS, true>;
    product(block.rows, vectors<float>(p.value_dim), (count + 1) / 2, w.P, 2 * BLOCK_Q, w.V, v_ld,
            w.O, output_width(p));
    first = false;
  }
  write_rows(block, unit.unit, w);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
