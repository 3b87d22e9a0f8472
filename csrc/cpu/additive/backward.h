#pragma once

#include "block.h"
#include "cpu/gemm.h"
#include "cpu/turnstile.h"

// Backward, one block of 64 queries of one head at a time; P is recomputed from the saved LSE.
//
//   delta = rowsum(dO * O) - dLSE
//   for each tile of 64 keys that the block sees:
//     P = e^(S - lse)                  S as in the forward
//     dP = dO V^T,  dS = P (dP - delta)
//     t = tanh, u = dS t, w = dS - u t see tanh_sums.h
//     dq += sum_j w,  dk = sum_i w,  dv += sum_ij u
//     dV = P^T dO
//     dk and dV into the accumulators shared by all queries: see Turnstile
//   dQ = v dq, and at the end dK = v dk
//
// -inf: a row that saw no key has lse = -inf; it is replaced by +inf, so that P = e^-inf = 0, and
// its dO and delta by 0 (what comes from above may be NaN), so every gradient of the row is 0.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive {

template <class T>
struct BackwardState {
  T *dO, *V, *V_lanes, *P, *dS, *dQ, *dK, *dV, *sums;
  int64_t ld;  // of rows of values
  alignas(64) T lse[BLOCK_Q];
  alignas(64) T delta[BLOCK_Q];

  static int64_t elements(const AttentionParams& p) {
    const int64_t value = round_up(p.value_dim, ROW_ALIGN), dim = row_stride<T>(p.head_dim);
    return (BLOCK_Q + 3 * BLOCK_KV) * value + 2 * BLOCK_Q * BLOCK_KV +
           (BLOCK_Q + BLOCK_KV + 1) * dim;
  }

  BackwardState(const AttentionParams& p, Memory<T>& memory)
      : ld(round_up(p.value_dim, ROW_ALIGN)) {
    const int64_t dim = row_stride<T>(p.head_dim);
    dO = memory.take(BLOCK_Q * ld);
    V = memory.take(BLOCK_KV * ld);
    V_lanes = memory.take(BLOCK_KV * ld);
    dV = memory.take(BLOCK_KV * ld);
    P = memory.take(BLOCK_Q * BLOCK_KV);
    dS = memory.take(BLOCK_Q * BLOCK_KV);
    dQ = memory.take(BLOCK_Q * dim);
    dK = memory.take(BLOCK_KV * dim);
    sums = memory.take(dim);
    for (int64_t i = 0; i < BLOCK_Q * dim; ++i) dQ[i] = T(0);
    for (int64_t i = 0; i < dim; ++i) sums[i] = T(0);
  }
};

template <class T>
inline int64_t backward_bytes(const AdditiveBackwardParams& params) {
  const AttentionParams& p = params.attention.forward;
  return sizeof(T) *
         (Projections<T>::elements(p) + padded_dim<T>(p.head_dim) + BackwardState<T>::elements(p));
}

// dO, lse and delta of the block.
template <class T>
inline void load_upstream(const BackwardParams& params, const QueryBlock<T>& block,
                          BackwardState<T>& w) {
  using V = Vec<T>;
  const AttentionParams& p = block.p;
  for (int64_t q = 0; q < block.rows; ++q) {
    const int64_t row = block.begin + q;
    T* dO = w.dO + q * w.ld;
    w.lse[q] = *row_value<T>(p.lse, block.b, block.h, row);
    w.delta[q] = T(0);
    if (w.lse[q] == NEG_INFINITY<T>) {
      w.lse[q] = -NEG_INFINITY<T>;
      for (int64_t d = 0; d < w.ld; ++d) dO[d] = T(0);
      continue;
    }
    load_padded_rows(params.grad_out, p.dtype, block.b, block.h, row, 1, p.value_dim, dO);
    load_padded_rows(p.out, p.dtype, block.b, block.h, row, 1, p.value_dim, w.V);
    V sum = V::broadcast(T(0));
    for (int64_t d = 0; d < w.ld; d += V::WIDTH) {
      sum = V::fma(V::load(dO + d), V::load(w.V + d), sum);
    }
    w.delta[q] = sum.sum_lanes();
    if (params.grad_lse.data != nullptr) {
      w.delta[q] -= *row_value<T>(params.grad_lse, block.b, block.h, row);
    }
  }
}

// P from the scores, dS from dP; both exactly 0 where a query does not see the key.
template <class T>
inline void score_gradients(const QueryBlock<T>& block, int64_t k_begin, int64_t k_end,
                            BackwardState<T>& w) {
  using V = Vec<T>;
  const int64_t width = vectors<T>(k_end - k_begin) * V::WIDTH;
  const V log2_e = V::broadcast(LOG2_E<T>);
  for (int64_t q = 0; q < block.rows; ++q) {
    T *P = w.P + q * BLOCK_KV, *dS = w.dS + q * BLOCK_KV;
    const V lse = V::broadcast(w.lse[q]), delta = V::broadcast(w.delta[q]);
    for (int64_t j = 0; j < width; j += V::WIDTH) {
      const V weight = exp2((V::load(P + j) - lse) * log2_e);
      weight.store(P + j);
      (weight * (V::load(dS + j) - delta)).store(dS + j);
    }
    const Range seen = block.visible(q, k_begin, k_end);
    for (int64_t j = 0; j < seen.begin; ++j) dS[j] = T(0);
    for (int64_t j = seen.end; j < width; ++j) dS[j] = T(0);
  }
}

// rows x dim of a tile, added to the accumulators of the keys that begin at `row`.
template <class T>
inline void add_rows(const T* src, int64_t ld, int64_t rows, int64_t dim, const Operand& sum,
                     int64_t b, int64_t h, int64_t row) {
  using V = Vec<T>;
  for (int64_t j = 0; j < rows; ++j) {
    T* dst = static_cast<T*>(sum.data) + b * sum.batch + h * sum.head + (row + j) * sum.row;
    for (int64_t d = 0; d < dim; d += V::WIDTH) {
      (V::load(dst + d) + V::load(src + j * ld + d)).store(dst + d);
    }
  }
}

template <class T>
inline void gradients_of_tile(const QueryBlock<T>& block, const Projections<T>& x, int64_t columns,
                              BackwardState<T>& w) {
  const int64_t dim = block.p.head_dim;
  for (int64_t i = 0; i < columns * row_stride<T>(dim); ++i) w.dK[i] = T(0);
  const auto tile = x.exact() ? gradient_tile<T, true> : gradient_tile<T, false>;
  tile(x.queries(), block.rows, x.keys(), columns, w.dS, dim, w.dQ, w.dK, w.sums);
}

template <class T>
inline void write_gradients(const AdditiveBackwardParams& params, const QueryBlock<T>& block,
                            const ScoreVector<T>& v, T* v_part, BackwardState<T>& w) {
  const AttentionParams& p = block.p;
  const Operand& grad = params.attention.grad_query;
  const int64_t dim = p.head_dim;
  for (int64_t d = 0; d < dim; ++d) v_part[d] = w.sums[d];
  if (grad.data == nullptr) return;
  multiply_rows(w.dQ, v.v, block.rows, dim, w.dQ);
  for (int64_t q = 0; q < block.rows; ++q) {
    char* dst = const_cast<char*>(row_pointer(grad, p.dtype, block.b, block.h, block.begin + q));
    store_row(w.dQ + q * row_stride<T>(dim), T(1), p.dtype, dim, dst);
  }
}

template <class T>
inline void backward_block(const AdditiveBackwardParams& params, int64_t b, int64_t h,
                           int64_t q_begin, int32_t* turns, void* v_part, void* scratch) {
  const AttentionParams& p = params.attention.forward;
  const AdditiveParams forward{p, params.v};
  Memory<T> memory{static_cast<T*>(scratch)};
  const QueryBlock<T> block(p, b, h, q_begin);
  BackwardState<T> w(p, memory);
  const ScoreVector<T> v(forward, h, memory);
  Projections<T> x(block, v, memory);
  load_upstream(params.attention, block, w);
  const bool projections = params.wants_projections();
  for (int64_t at = block.keys.begin / BLOCK_KV; at * BLOCK_KV < block.keys.end; ++at) {
    const int64_t begin = at * BLOCK_KV, end = min_of(begin + BLOCK_KV, block.keys.end);
    const int64_t columns = end - begin, value_vectors = vectors<T>(p.value_dim);
    x.load_keys(begin, end);
    compute_scores(block, x, begin, end, v, w.P);
    const Tile<T> V = load_rows(p.value, p.dtype, b, h, begin, columns, p.value_dim, w.V);
    transpose(V.data, V.ld, columns, p.value_dim, w.V_lanes, BLOCK_KV);
    gemm<T, AOrder::ROWS, false>(block.rows, vectors<T>(columns), p.value_dim, w.dO, w.ld,
                                 w.V_lanes, BLOCK_KV, w.dS, BLOCK_KV);
    score_gradients(block, begin, end, w);
    if (projections) gradients_of_tile(block, x, columns, w);
    gemm<T, AOrder::COLUMNS, false>(columns, value_vectors, block.rows, w.P, BLOCK_KV, w.dO, w.ld,
                                    w.dV, w.ld);
    const Turnstile turnstile(turns, block.seq, 0, q_begin / BLOCK_Q, at);
    turnstile.wait();
    if (projections) {
      add_rows(w.dK, row_stride<T>(p.head_dim), columns, p.head_dim, params.attention.key_sum, b, h,
               begin);
    }
    add_rows(w.dV, w.ld, columns, p.value_dim, params.attention.value_sum, b, h, begin);
    turnstile.leave();
  }
  write_gradients(params, block, v, static_cast<T*>(v_part), w);
}

// One row of dK, times v, and of dV from the accumulators to the tensors.
template <class T>
inline void finish_key_row(const AdditiveBackwardParams& params, int64_t b, int64_t h, int64_t row,
                           void* scratch) {
  const BackwardParams& all = params.attention;
  const AttentionParams& p = all.forward;
  T* scaled = static_cast<T*>(scratch);
  const T* v = static_cast<const T*>(params.v) + h * p.head_dim;
  const auto sums = [&](const Operand& x) {
    return static_cast<const T*>(x.data) + b * x.batch + h * x.head + row * x.row;
  };
  const auto gradient = [&](const Operand& x) {
    return const_cast<char*>(row_pointer(x, p.dtype, b, h, row));
  };
  if (all.grad_key.data != nullptr) {
    for (int64_t d = 0; d < p.head_dim; ++d) scaled[d] = sums(all.key_sum)[d] * v[d];
    store_row(scaled, T(1), p.dtype, p.head_dim, gradient(all.grad_key));
  }
  if (all.grad_value.data != nullptr) {
    store_row(sums(all.value_sum), T(1), p.dtype, p.value_dim, gradient(all.grad_value));
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive
