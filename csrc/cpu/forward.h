#pragma once

#include <cfloat>

#include "scores.h"

// Forward: out = softmax(scores) V by online softmax, one block of queries of one head at a time.
//
//   for each step of 64 keys that the block sees:
//     S^T = K (Q^T * scale)           softcap, bias, ALiBi; masked only at the band's edges
//     m' = column max of S^T if far above m, else m;  alpha = e^(m - m')
//     P^T = e^(S^T - m')              l = alpha * l + column sum of P^T
//     O = alpha * O + P V             dropout on P between the sum and this product
//   out = O / l,  lse = m + ln l
//
// A sink is a key with score `sink` and value 0: m and l start at (sink, 1).
// -inf: a query that has seen no key yet has m = -inf. Shifting by 0 instead keeps every exponent
// at e^-inf = 0, so l stays 0 and no NaN can arise; such a row ends as out 0, lse -inf.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
struct ForwardScratch {
  T *Q_lanes, *K, *V, *S, *O, *rows, *dropout, *bias;
  alignas(64) T m[BLOCK_Q];
  alignas(64) T l[BLOCK_Q];

  static int64_t elements(const AttentionParams& p) {
    const int64_t qk = round_up(p.head_dim, ROW_ALIGN), v = round_up(p.value_dim, ROW_ALIGN);
    const int64_t widest = max_of(qk, v);
    return BLOCK_Q * (qk + v + widest) + BLOCK_KV * (qk + v) + 4 * BLOCK_KV * BLOCK_Q;
  }

  ForwardScratch(const AttentionParams& p, T* memory) {
    const int64_t qk = round_up(p.head_dim, ROW_ALIGN), v = round_up(p.value_dim, ROW_ALIGN);
    auto take = [&memory](int64_t count) {
      T* taken = memory;
      memory += count;
      return taken;
    };
    Q_lanes = take(BLOCK_Q * qk);
    O = take(BLOCK_Q * v);
    rows = take(BLOCK_Q * max_of(qk, v));
    K = take(BLOCK_KV * qk);
    V = take(BLOCK_KV * v);
    S = take(BLOCK_KV * BLOCK_Q);
    dropout = take(BLOCK_KV * BLOCK_Q);
    bias = take(2 * BLOCK_KV * BLOCK_Q);
  }
};

// Columns of O, whose rows are queries.
inline int64_t output_width(const AttentionParams& p) { return round_up(p.value_dim, ROW_ALIGN); }

// `unit`: what a score of 1 is worth, so that m counts the scores as they come.
template <class T, class Scratch>
inline void start_rows(const QueryBlock<T>& block, T unit, Scratch& w) {
  const AttentionParams& p = block.params;
  T sink = NEG_INFINITY<T>;
  if (p.sinks != nullptr) sink = static_cast<const T*>(p.sinks)[block.h] / unit;
  for (int64_t q = 0; q < BLOCK_Q; ++q) {
    w.m[q] = sink;
    w.l[q] = sink == NEG_INFINITY<T> ? T(0) : T(1);
  }
  if (block.keys.begin < block.keys.end) return;  // the first step writes O
  for (int64_t i = 0; i < block.rows * output_width(p); ++i) w.O[i] = T(0);
}

// How far scores may rise above m before m follows: weights then stay below e^5, and O and l are
// rescaled a few times at the start instead of whenever some query's maximum moves.
constexpr double SLACK = 5.0;

// m of one vector of queries after a step: each query's own affair, so no row depends on another.
template <class T>
inline Vec<T> next_shift(const T* s, int64_t count, Vec<T> m_old, T slack) {
  using V = Vec<T>;
  V top[4] = {m_old, m_old, m_old, m_old};
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) top[i] = V::max(top[i], V::load(s + (j + i) * BLOCK_Q));
  }
  for (; j < count; ++j) top[0] = V::max(top[0], V::load(s + j * BLOCK_Q));
  const V highest = V::max(V::max(top[0], top[1]), V::max(top[2], top[3]));
  return V::select_less(m_old + V::broadcast(slack), highest, highest, m_old);
}

// m is -inf only while no key was visible: then exponents are shifted by 0.
template <class T>
inline Vec<T> finite_shift(Vec<T> m) {
  using V = Vec<T>;
  const V lowest = V::broadcast(static_cast<T>(sizeof(T) == 4 ? -FLT_MAX : -DBL_MAX));
  return V::select_less(m, lowest, V::broadcast(T(0)), m);
}

// The rows of O that belong to one vector of queries; none before the first product.
template <class T>
struct OutputRows {
  T* data;
  int64_t count, width;

  OutputRows(T* O, int64_t lane, const QueryBlock<T>& block, bool none)
      : data(O + lane * output_width(block.params)),
        count(none ? 0 : min_of(block.rows - lane, Vec<T>::WIDTH)),
        width(output_width(block.params)) {}
};

// l and O after m has moved from m_old to m_new; `factor` as in the weights.
template <class T>
inline void rescale(Vec<T> m_old, Vec<T> m_new, T factor, Vec<T> sum, T* m, T* l,
                    const OutputRows<T>& o) {
  using V = Vec<T>;
  if (V::all_equal(m_old, m_new)) {
    (V::load(l) + sum).store(l);
    return;
  }
  m_new.store(m);
  const V alpha = exp2((m_old - finite_shift(m_new)) * V::broadcast(factor));
  V::fma(V::load(l), alpha, sum).store(l);
  alignas(64) T factors[V::WIDTH];
  alpha.store(factors);
  for (int64_t q = 0; q < o.count; ++q) {
    T* row = o.data + q * o.width;
    for (int64_t d = 0; d < o.width; d += V::WIDTH) {
      (V::load(row + d) * V::broadcast(factors[q])).store(row + d);
    }
  }
}

// One vector of queries: m, weights in place of the scores, l.
template <class T>
inline void online_softmax_update(T* s, int64_t count, T* m, T* l, const OutputRows<T>& o) {
  using V = Vec<T>;
  const V m_old = V::load(m), m_new = next_shift(s, count, m_old, T(SLACK));
  const V shift = finite_shift(m_new), log2e = V::broadcast(LOG2_E<T>);
  V sum[2] = {V::broadcast(T(0)), V::broadcast(T(0))};
  int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const V p = exp2((V::load(s + (j + i) * BLOCK_Q) - shift) * log2e);
      p.store(s + (j + i) * BLOCK_Q);
      sum[i] = sum[i] + p;
    }
  }
  if (j < count) {
    const V p = exp2((V::load(s + j * BLOCK_Q) - shift) * log2e);
    p.store(s + j * BLOCK_Q);
    sum[0] = sum[0] + p;
  }
  rescale(m_old, m_new, LOG2_E<T>, sum[0] + sum[1], m, l, o);
}

inline float log_of(float x) { return logf(x); }
inline double log_of(double x) { return ::log(x); }

template <class T, class Scratch>
inline void write_rows(const QueryBlock<T>& block, T unit, Scratch& w) {
  const AttentionParams& p = block.params;
  const int64_t ld = output_width(p);
  for (int64_t q = 0; q < block.rows; ++q) {
    const T inverse = w.l[q] == T(0) ? T(0) : T(1) / w.l[q];
    const char* out = row_pointer(p.out, p.dtype, block.b, block.h, block.q_row() + q);
    store_row(w.O + q * ld, inverse, p.dtype, p.value_dim, const_cast<char*>(out));
    const T lse = w.l[q] == T(0) ? NEG_INFINITY<T> : w.m[q] * unit + log_of(w.l[q]);
    *row_value<T>(p.lse, block.b, block.h, block.q_row() + q) = lse;
  }
}

template <class T>
inline void forward_block(const AttentionParams& p, int64_t b, int64_t h, int64_t q_begin,
                          void* memory) {
  ForwardScratch<T> w(p, static_cast<T*>(memory));
  const QueryBlock<T> block(p, b, h, q_begin);
  const Tile<T> Q =
      load_rows(p.query, p.dtype, b, h, block.q_row(), block.rows, p.head_dim, w.rows);
  load_lanes(Q, block.rows, p.head_dim, T(p.scale), w.Q_lanes);
  start_rows(block, T(1), w);

  bool first = true;
  for (int64_t at = block.keys.begin / BLOCK_KV; at * BLOCK_KV < block.keys.end; ++at) {
    const KeyStep step = key_step(at, block);
    const int64_t k_row = block.seq.k_start + step.begin;
    const int64_t ahead = min_of(BLOCK_KV, block.keys.end - step.end);
    prefetch_rows(p.key, p.dtype, b, block.h_kv, k_row + step.count(), ahead, p.head_dim);
    prefetch_rows(p.value, p.dtype, b, block.h_kv, k_row + step.count(), ahead, p.value_dim);
    const Tile<T> K =
        load_rows(p.key, p.dtype, b, block.h_kv, k_row, step.count(), p.head_dim, w.K);
    compute_scores(block, step, K, w.Q_lanes, w.S, static_cast<T*>(nullptr), w.bias);
    for (int64_t n = 0; n < block.vecs; ++n) {
      const int64_t at_lane = n * Vec<T>::WIDTH;
      online_softmax_update(w.S + at_lane, step.count(), w.m + at_lane, w.l + at_lane,
                            OutputRows<T>(w.O, at_lane, block, first));
    }
    if (p.dropout.threshold != 0) {
      dropout_factors(block, step, w.dropout);
      multiply_tile(w.dropout, step.count(), block.vecs, w.S);
    }
    const Tile<T> V =
        load_vector_rows(p.value, p.dtype, b, block.h_kv, k_row, step.count(), p.value_dim, w.V);
    const auto product = first ? gemm<T, AOrder::COLUMNS, false> : gemm<T, AOrder::COLUMNS, true>;
    product(block.rows, vectors<T>(p.value_dim), step.count(), w.S, BLOCK_Q, V.data, V.ld, w.O,
            output_width(p));
    first = false;
  }
  write_rows(block, T(1), w);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
