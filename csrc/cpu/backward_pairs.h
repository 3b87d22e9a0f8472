#pragma once

#include "backward.h"
#include "forward_pairs.h"

// Backward for bf16 by products of pairs: the walk, the turns and the fp32 sums of backward.h. P
// and dS are rounded to bf16 for the three products that they enter. dS stays without the scale,
// which dQ and dK get when they are written.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

struct BackwardScratchPairs {
  bf16_t *Q_pairs, *Q_lanes, *dO_pairs, *dO_lanes, *dO_rows, *K, *V, *K_pairs;
  bf16_t *P_rows, *dS_rows, *dS_pairs;
  float *dQ, *S, *dP, *slope, *dropout, *bias;
  alignas(64) float lse[BLOCK_Q];
  alignas(64) float delta[BLOCK_Q];

  BackwardScratchPairs(const AttentionParams& p, Arena& arena) {
    const int64_t qk = round_up(p.head_dim, 2 * ROW_ALIGN);
    const int64_t v = round_up(p.value_dim, 2 * ROW_ALIGN);
    Q_pairs = arena.take<bf16_t>(BLOCK_Q * qk);
    Q_lanes = arena.take<bf16_t>(BLOCK_Q * qk);
    K = arena.take<bf16_t>(BLOCK_KV * qk);
    K_pairs = arena.take<bf16_t>(BLOCK_KV * qk);
    dO_pairs = arena.take<bf16_t>(BLOCK_Q * v);
    dO_lanes = arena.take<bf16_t>(BLOCK_Q * v);
    dO_rows = arena.take<bf16_t>(BLOCK_Q * v);
    V = arena.take<bf16_t>(BLOCK_KV * v);
    P_rows = arena.take<bf16_t>(BLOCK_KV * BLOCK_Q);
    dS_rows = arena.take<bf16_t>(BLOCK_KV * BLOCK_Q);
    dS_pairs = arena.take<bf16_t>(BLOCK_KV * BLOCK_Q);
    dQ = arena.take<float>(BLOCK_Q * round_up(p.head_dim, ROW_ALIGN));
    S = arena.take<float>(BLOCK_KV * BLOCK_Q);
    dP = arena.take<float>(BLOCK_KV * BLOCK_Q);
    slope = arena.take<float>(BLOCK_KV * BLOCK_Q);
    dropout = arena.take<float>(BLOCK_KV * BLOCK_Q);
    bias = arena.take<float>(2 * BLOCK_KV * BLOCK_Q);
  }

  static int64_t bytes(const AttentionParams& p) {
    Arena arena{nullptr};
    BackwardScratchPairs scratch(p, arena);
    return reinterpret_cast<intptr_t>(arena.next);
  }
};

// dO's rows, 0 for those that saw no key.
inline RowsBf16 load_output_gradient_pairs(const BackwardParams& params,
                                           const QueryBlock<float>& block,
                                           BackwardScratchPairs& w) {
  const AttentionParams& p = params.forward;
  const int64_t row = block.q_row(), ld = round_up(p.value_dim, 2 * ROW_ALIGN);
  const auto dead = [&](int64_t q) {
    return *row_value<float>(p.lse, block.b, block.h, row + q) == NEG_INFINITY<float>;
  };
  int64_t dead_rows = 0;
  for (int64_t q = 0; q < block.rows; ++q) dead_rows += dead(q);
  if (dead_rows == 0) {
    return load_rows_bf16(params.grad_out, block.b, block.h, row, block.rows, p.value_dim,
                          w.dO_rows);
  }
  copy_rows_bf16(params.grad_out, block.b, block.h, row, block.rows, p.value_dim, w.dO_rows);
  for (int64_t q = 0; q < block.rows; ++q) {
    if (dead(q)) std::memset(w.dO_rows + q * ld, 0, ld * sizeof(bf16_t));
  }
  return {w.dO_rows, ld};
}

// Q and dO as lanes and as pairs of queries; lse and delta per lane.
inline void load_query_block_pairs(const BackwardParams& params, const QueryBlock<float>& block,
                                   const ScoreUnit& unit, BackwardScratchPairs& w) {
  const AttentionParams& p = params.forward;
  const bf16_t* Q = bf16_row(p.query, block.b, block.h, block.q_row());
  zip_rows(Q, p.query.row, block.rows, p.head_dim, w.Q_pairs);
  zip_lanes(Q, p.query.row, block.rows, p.head_dim, unit.flip, w.Q_lanes);

  const RowsBf16 dO = load_output_gradient_pairs(params, block, w);
  zip_rows(dO.data, dO.ld, block.rows, p.value_dim, w.dO_pairs);
  zip_lanes(dO.data, dO.ld, block.rows, p.value_dim, false, w.dO_lanes);
  const bf16_t* O = bf16_row(p.out, block.b, block.h, block.q_row());
  load_statistics(params, block, w, [&](int64_t q) {
    return dot_bf16(dO.data + q * dO.ld, O + q * p.out.row, p.value_dim);
  });
}

// P (with dropout) and dS of one key and one vector of queries. SPECIAL: dropout or a softcap.
template <bool SPECIAL>
inline void score_gradient_pairs(const AttentionParams& p, const BackwardScratchPairs& w,
                                 int64_t at, Vec<float> factor, Vec<float> lse, Vec<float> delta,
                                 Vec<float>* weight, Vec<float>* gradient) {
  using V = Vec<float>;
  *weight = exp2_for_half((V::load(w.S + at) - lse) * factor);
  V dP = V::load(w.dP + at), P = *weight;
  if (SPECIAL && p.dropout.threshold != 0) {
    const V kept = V::load(w.dropout + at);
    *weight = P * kept;
    dP = dP * kept;
  }
  *gradient = P * (dP - delta);
  if (SPECIAL && p.softcap > 0) *gradient = *gradient * V::load(w.slope + at);
}

// P^T and dS^T of one step from S^T and dP^T, as rows of keys and dS^T as pairs of keys.
template <bool SPECIAL>
inline void score_gradients_pairs(const QueryBlock<float>& block, int64_t count, float unit,
                                  BackwardScratchPairs& w) {
  using V = Vec<float>;
  const AttentionParams& p = block.params;
  const V factor = V::broadcast(unit * LOG2_E<float>), zero = V::broadcast(0.f);
  const auto store_rows = [](__m512i rows, bf16_t* to) {
    __m256i* row = reinterpret_cast<__m256i*>(to);
    _mm256_store_si256(row, _mm512_castsi512_si256(rows));
    _mm256_store_si256(row + BLOCK_Q / V::WIDTH, _mm512_extracti64x4_epi64(rows, 1));
  };
  for (int64_t lane = 0; lane < block.vecs * V::WIDTH; lane += V::WIDTH) {
    const V lse = V::load(w.lse + lane) * V::broadcast(1.f / unit);
    const V delta = V::load(w.delta + lane);
    for (int64_t j = 0; j < count; j += 2) {
      const int64_t at = j * BLOCK_Q + lane;
      V weight[2], gradient[2];
      score_gradient_pairs<SPECIAL>(p, w, at, factor, lse, delta, &weight[0], &gradient[0]);
      score_gradient_pairs<SPECIAL>(p, w, at + BLOCK_Q, factor, lse, delta, &weight[1],
                                    &gradient[1]);
      if (j + 1 == count) weight[1] = gradient[1] = zero;  // what lies there is of another step
      store_rows(pack_pairs(weight[0], weight[1]).rows, w.P_rows + at);
      const PackedPairs dS = pack_pairs(gradient[0], gradient[1]);
      store_rows(dS.rows, w.dS_rows + at);
      _mm512_store_si512(w.dS_pairs + at + lane, dS.pairs);
    }
  }
  // The partner of the last query of an odd block: products over queries read it.
  if (block.rows % 2 == 0) return;
  for (int64_t j = 0; j < count; ++j) {
    w.P_rows[j * BLOCK_Q + block.rows] = w.dS_rows[j * BLOCK_Q + block.rows] = 0;
  }
}

inline void backward_block_pairs(const BackwardParams& params, int64_t b, int64_t h,
                                 int64_t q_begin, int32_t* turns, void* memory) {
  const AttentionParams& p = params.forward;
  Arena arena{static_cast<char*>(memory)};
  BackwardScratchPairs w(p, arena);
  const QueryBlock<float> block(p, b, h, q_begin);
  const ScoreUnit unit(p);
  load_query_block_pairs(params, block, unit, w);
  const int64_t dQ_ld = round_up(p.head_dim, ROW_ALIGN);
  for (int64_t i = 0; i < block.rows * dQ_ld; ++i) w.dQ[i] = 0.f;
  const int64_t group_head = h % (p.heads_q / p.heads_kv), q_pairs = (block.rows + 1) / 2;
  const int64_t qk_ld = 2 * round_up(p.head_dim, ROW_ALIGN);
  const int64_t v_ld = 2 * round_up(p.value_dim, ROW_ALIGN);

  for (int64_t at = block.keys.begin / BLOCK_KV; at * BLOCK_KV < block.keys.end; ++at) {
    const KeyStep step = key_step(at, block);
    const int64_t count = step.count(), k_row = block.seq.k_start + step.begin;
    prefetch_next_step(params, block, step);
    const RowsBf16 K = load_rows_bf16(p.key, b, block.h_kv, k_row, count, p.head_dim, w.K);
    const RowsBf16 V = load_rows_bf16(p.value, b, block.h_kv, k_row, count, p.value_dim, w.V);
    compute_scores_pairs(block, step, K, w.Q_lanes, unit, w.S, w.slope, w.bias);
    gemm_pairs<AOrder::ROWS, false>(count, block.vecs, (p.value_dim + 1) / 2, V.data, V.ld,
                                    w.dO_lanes, 2 * BLOCK_Q, w.dP, BLOCK_Q);
    if (p.dropout.threshold != 0) dropout_factors(block, step, w.dropout);
    const bool special = p.dropout.threshold != 0 || p.softcap > 0;
    (special ? score_gradients_pairs<true> : score_gradients_pairs<false>)(block, count, unit.unit,
                                                                           w);
    zip_rows(K.data, K.ld, count, p.head_dim, w.K_pairs);

    float* dV = static_cast<float*>(params.value_sum.data) + b * params.value_sum.batch +
                block.h_kv * params.value_sum.head + k_row * params.value_sum.row;
    float* dK = static_cast<float*>(params.key_sum.data) + b * params.key_sum.batch +
                block.h_kv * params.key_sum.head + k_row * params.key_sum.row;
    const Turnstile turnstile(turns, block.seq, group_head, q_begin / BLOCK_Q, at);
    turnstile.wait();
    turnstile.touch_first(dV, count, params.value_sum.row);
    turnstile.touch_first(dK, count, params.key_sum.row);
    gemm_pairs<AOrder::ROWS, true>(count, vectors<float>(p.value_dim), q_pairs, w.P_rows, BLOCK_Q,
                                   w.dO_pairs, v_ld, dV, params.value_sum.row);
    gemm_pairs<AOrder::ROWS, true>(count, vectors<float>(p.head_dim), q_pairs, w.dS_rows, BLOCK_Q,
                                   w.Q_pairs, qk_ld, dK, params.key_sum.row);
    turnstile.leave();
    gemm_pairs<AOrder::COLUMNS, true>(block.rows, vectors<float>(p.head_dim), (count + 1) / 2,
                                      w.dS_pairs, 2 * BLOCK_Q, w.K_pairs, qk_ld, w.dQ, dQ_ld);
  }
  write_query_gradient(params, block, static_cast<float>(p.scale), w);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
