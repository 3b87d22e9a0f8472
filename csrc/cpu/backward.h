#pragma once

#include "scores.h"
#include "turnstile.h"

// Backward, one block of queries of one head at a time; P is recomputed from the saved LSE.
//
//   delta = rowsum(dO * O) - dLSE
//   for each step of 64 keys that the block sees:
//     P^T  = e^(S^T - lse)             S^T as in the forward
//     dP^T = V dO^T                    (dropout: dP * Z and P * Z with Z = 0 or 1 / keep)
//     dS^T = P^T * (dP^T - delta)      times the softcap's slope, times scale
//     dV  += P^T dO,  dK += dS^T Q     in the accumulators shared by all queries: see Turnstile
//     dQ  += dS K
//
// -inf: a row that saw no key has lse = -inf; it is replaced by +inf, so that P = e^-inf = 0, and
// its dO and delta by 0 (what comes from above may be NaN: the derivative of logaddexp at -inf is),
// so every gradient of the row is 0. The same hides the unused lanes of the last block.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
struct BackwardScratch {
  T *Q, *Q_lanes, *dO, *dO_lanes, *dQ, *rows, *K, *V, *P, *dS, *slope, *dropout, *P_dropped, *bias;
  alignas(64) T lse[BLOCK_Q];
  alignas(64) T delta[BLOCK_Q];

  static int64_t elements(const AttentionParams& p) {
    const int64_t qk = round_up(p.head_dim, ROW_ALIGN), v = round_up(p.value_dim, ROW_ALIGN);
    return BLOCK_Q * (3 * qk + 2 * v + max_of(qk, v)) + BLOCK_KV * (qk + v) +
           7 * BLOCK_KV * BLOCK_Q;
  }

  BackwardScratch(const AttentionParams& p, T* memory) {
    const int64_t qk = round_up(p.head_dim, ROW_ALIGN), v = round_up(p.value_dim, ROW_ALIGN);
    auto take = [&memory](int64_t count) {
      T* taken = memory;
      memory += count;
      return taken;
    };
    Q = take(BLOCK_Q * qk);
    Q_lanes = take(BLOCK_Q * qk);
    dQ = take(BLOCK_Q * qk);
    dO = take(BLOCK_Q * v);
    dO_lanes = take(BLOCK_Q * v);
    rows = take(BLOCK_Q * max_of(qk, v));
    K = take(BLOCK_KV * qk);
    V = take(BLOCK_KV * v);
    P = take(BLOCK_KV * BLOCK_Q);
    dS = take(BLOCK_KV * BLOCK_Q);
    slope = take(BLOCK_KV * BLOCK_Q);
    dropout = take(BLOCK_KV * BLOCK_Q);
    P_dropped = take(BLOCK_KV * BLOCK_Q);
    bias = take(2 * BLOCK_KV * BLOCK_Q);
  }
};

// sum x[i] * y[i] over n values, whole vectors; lane by lane, so that rounding errors
// grow with n / WIDTH only.
template <class T>
inline T dot(const T* x, const T* y, int64_t n) {
  using V = Vec<T>;
  V sum = V::broadcast(T(0));
  for (int64_t i = 0; i < n; i += V::WIDTH) sum = V::fma(V::load(x + i), V::load(y + i), sum);
  return sum.sum_lanes();
}

// lse and delta per lane; `dot(q)` is dO's row q times that of O and is asked for those alone that
// saw a key.
template <class T, class Scratch, class Dot>
inline void load_statistics(const BackwardParams& params, const QueryBlock<T>& block, Scratch& w,
                            const Dot& dot) {
  const AttentionParams& p = params.forward;
  const int64_t b = block.b, h = block.h, row = block.q_row();
  for (int64_t q = 0; q < BLOCK_Q; ++q) {
    w.lse[q] = -NEG_INFINITY<T>;
    w.delta[q] = T(0);
    if (q >= block.rows) continue;
    const T lse = *row_value<T>(p.lse, b, h, row + q);
    if (lse == NEG_INFINITY<T>) continue;
    w.lse[q] = lse;
    w.delta[q] = dot(q);
    if (params.grad_lse.data != nullptr) {
      w.delta[q] -= *row_value<T>(params.grad_lse, b, h, row + q);
    }
  }
}

// dO's rows as vectors, 0 for those that saw no key.
template <class T>
inline Tile<T> load_output_gradient(const BackwardParams& params, const QueryBlock<T>& block,
                                    BackwardScratch<T>& w) {
  const AttentionParams& p = params.forward;
  const int64_t b = block.b, h = block.h, row = block.q_row();
  const auto dead = [&](int64_t q) {
    return *row_value<T>(p.lse, b, h, row + q) == NEG_INFINITY<T>;
  };
  int64_t dead_rows = 0;
  for (int64_t q = 0; q < block.rows; ++q) dead_rows += dead(q);
  const auto load = dead_rows == 0 ? load_vector_rows<T> : load_padded_rows<T>;
  const Tile<T> dO = load(params.grad_out, p.dtype, b, h, row, block.rows, p.value_dim, w.dO);
  for (int64_t q = 0; dead_rows > 0 && q < block.rows; ++q) {
    for (int64_t d = 0; dead(q) && d < dO.ld; ++d) w.dO[q * dO.ld + d] = T(0);
  }
  return dO;
}

template <class T>
struct QueryRows {
  Tile<T> Q, dO;
};

// Q and dO as rows and as lanes; lse and delta per lane.
template <class T>
inline QueryRows<T> load_query_block(const BackwardParams& params, const QueryBlock<T>& block,
                                     BackwardScratch<T>& w) {
  const AttentionParams& p = params.forward;
  const int64_t b = block.b, h = block.h, row = block.q_row();
  const Tile<T> Q = load_vector_rows(p.query, p.dtype, b, h, row, block.rows, p.head_dim, w.Q);
  load_lanes(Q, block.rows, p.head_dim, T(p.scale), w.Q_lanes);
  const Tile<T> dO = load_output_gradient(params, block, w);
  load_lanes(dO, block.rows, p.value_dim, T(1), w.dO_lanes);
  const Tile<T> O = load_vector_rows(p.out, p.dtype, b, h, row, block.rows, p.value_dim, w.rows);
  const int64_t width = vectors<T>(p.value_dim) * Vec<T>::WIDTH;
  load_statistics(params, block, w,
                  [&](int64_t q) { return dot(dO.data + q * dO.ld, O.data + q * O.ld, width); });
  return {Q, dO};
}

// P^T into w.P, dS^T (before the softcap's slope and the scale) into w.dS.
template <class T>
inline void compute_score_gradients(const QueryBlock<T>& block, const KeyStep& step,
                                    const Tile<T>& K, const Tile<T>& V, BackwardScratch<T>& w) {
  using Vector = Vec<T>;
  const AttentionParams& p = block.params;
  compute_scores(block, step, K, w.Q_lanes, w.P, w.slope, w.bias);
  gemm<T, AOrder::ROWS, false>(step.count(), block.vecs, p.value_dim, V.data, V.ld, w.dO_lanes,
                               BLOCK_Q, w.dS, BLOCK_Q);
  if (p.dropout.threshold != 0) {
    dropout_factors(block, step, w.dropout);
    multiply_tile(w.dropout, step.count(), block.vecs, w.dS);
  }
  const Vector log2e = Vector::broadcast(LOG2_E<T>);
  for (int64_t n = 0; n < block.vecs; ++n) {
    const Vector lse = Vector::load(w.lse + n * Vector::WIDTH);
    const Vector delta = Vector::load(w.delta + n * Vector::WIDTH);
    for (int64_t j = 0; j < step.count(); ++j) {
      const int64_t at = j * BLOCK_Q + n * Vector::WIDTH;
      const Vector weight = exp2((Vector::load(w.P + at) - lse) * log2e);
      weight.store(w.P + at);
      (weight * (Vector::load(w.dS + at) - delta)).store(w.dS + at);
    }
  }
}

// dS^T <- dS^T * slope * scale: from the gradient of the final scores to that of Q K^T.
template <class T>
inline void gradient_before_scale(const QueryBlock<T>& block, const KeyStep& step,
                                  BackwardScratch<T>& w) {
  if (block.params.softcap > 0) multiply_tile(w.slope, step.count(), block.vecs, w.dS);
  scale_tile(T(block.params.scale), step.count(), block.vecs, w.dS);
}

template <class T, class Scratch>
inline void write_query_gradient(const BackwardParams& params, const QueryBlock<T>& block, T factor,
                                 Scratch& w) {
  const AttentionParams& p = params.forward;
  const int64_t ld = round_up(p.head_dim, ROW_ALIGN);
  for (int64_t q = 0; q < block.rows; ++q) {
    const int64_t row = block.q_row() + q;
    char* dq = const_cast<char*>(row_pointer(params.grad_query, p.dtype, block.b, block.h, row));
    store_row(w.dQ + q * ld, factor, p.dtype, p.head_dim, dq);
    *row_value<T>(params.delta, block.b, block.h, row) = w.delta[q];
  }
}

// K, V, dK and dV of the step after this one.
template <class T>
inline void prefetch_next_step(const BackwardParams& params, const QueryBlock<T>& block,
                               const KeyStep& step) {
  const AttentionParams& p = params.forward;
  const DType sum_dtype = sizeof(T) == 8 ? DType::FLOAT64 : DType::FLOAT32;
  const int64_t row = block.seq.k_start + step.end;
  const int64_t ahead = min_of(BLOCK_KV, block.keys.end - step.end);
  prefetch_rows(p.key, p.dtype, block.b, block.h_kv, row, ahead, p.head_dim);
  prefetch_rows(p.value, p.dtype, block.b, block.h_kv, row, ahead, p.value_dim);
  prefetch_rows(params.key_sum, sum_dtype, block.b, block.h_kv, row, ahead, p.head_dim);
  prefetch_rows(params.value_sum, sum_dtype, block.b, block.h_kv, row, ahead, p.value_dim);
}

// `turns`: the counters of this (batch, key/value head), one per block of keys, zero at the start.
template <class T>
inline void backward_block(const BackwardParams& params, int64_t b, int64_t h, int64_t q_begin,
                           int32_t* turns, void* memory) {
  const AttentionParams& p = params.forward;
  BackwardScratch<T> w(p, static_cast<T*>(memory));
  const QueryBlock<T> block(p, b, h, q_begin);
  const QueryRows<T> rows = load_query_block(params, block, w);
  const int64_t dQ_ld = round_up(p.head_dim, ROW_ALIGN);
  for (int64_t i = 0; i < block.rows * dQ_ld; ++i) w.dQ[i] = T(0);
  const int64_t group_head = h % (p.heads_q / p.heads_kv);
  const bool drop = p.dropout.threshold != 0;

  for (int64_t at = block.keys.begin / BLOCK_KV; at * BLOCK_KV < block.keys.end; ++at) {
    const KeyStep step = key_step(at, block);
    const int64_t count = step.count(), k_row = block.seq.k_start + step.begin;
    prefetch_next_step(params, block, step);
    const Tile<T> K =
        load_vector_rows(p.key, p.dtype, b, block.h_kv, k_row, count, p.head_dim, w.K);
    const Tile<T> V = load_rows(p.value, p.dtype, b, block.h_kv, k_row, count, p.value_dim, w.V);
    compute_score_gradients(block, step, K, V, w);
    gradient_before_scale(block, step, w);
    const T* P = w.P;
    if (drop) {
      std::memcpy(w.P_dropped, w.P, count * BLOCK_Q * sizeof(T));
      multiply_tile(w.dropout, count, block.vecs, w.P_dropped);
      P = w.P_dropped;
    }
    T* dV = static_cast<T*>(params.value_sum.data) + b * params.value_sum.batch +
            block.h_kv * params.value_sum.head + k_row * params.value_sum.row;
    T* dK = static_cast<T*>(params.key_sum.data) + b * params.key_sum.batch +
            block.h_kv * params.key_sum.head + k_row * params.key_sum.row;
    const Turnstile turnstile(turns, block.seq, group_head, q_begin / BLOCK_Q, at);
    turnstile.wait();
    turnstile.touch_first(dV, count, params.value_sum.row);
    turnstile.touch_first(dK, count, params.key_sum.row);
    gemm<T, AOrder::ROWS, true>(count, vectors<T>(p.value_dim), block.rows, P, BLOCK_Q,
                                rows.dO.data, rows.dO.ld, dV, params.value_sum.row);
    gemm<T, AOrder::ROWS, true>(count, vectors<T>(p.head_dim), block.rows, w.dS, BLOCK_Q,
                                rows.Q.data, rows.Q.ld, dK, params.key_sum.row);
    turnstile.leave();
    gemm<T, AOrder::COLUMNS, true>(block.rows, vectors<T>(p.head_dim), count, w.dS, BLOCK_Q, K.data,
                                   K.ld, w.dQ, dQ_ld);
  }
  write_query_gradient(params, block, T(1), w);
}

// Rows of dK, times `factor`, and dV from the sums to the tensors.
template <class T>
inline void finish_key_rows(const BackwardParams& params, int64_t b, int64_t h, int64_t begin,
                            int64_t end, T factor) {
  const DType dtype = params.forward.dtype;
  const auto finish = [&](const Operand& sum, const Operand& to, int64_t dim, T scale) {
    const T* from = static_cast<const T*>(sum.data) + b * sum.batch + h * sum.head;
    for (int64_t row = begin; row < end; ++row) {
      char* out = const_cast<char*>(row_pointer(to, dtype, b, h, row));
      store_row(from + row * sum.row, scale, dtype, dim, out);
    }
  };
  finish(params.key_sum, params.grad_key, params.forward.head_dim, factor);
  finish(params.value_sum, params.grad_value, params.forward.value_dim, T(1));
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
