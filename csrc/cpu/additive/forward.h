#pragma once

#include "block.h"
#include "cpu/gemm.h"

// Forward, one block of 64 queries of one head at a time, by online softmax.
//
//   for each tile of 64 keys that the block sees:
//     S = scores                       see tanh_sums.h; masked only at the band's edges
//     m' = max(m, row max of S)        alpha = e^(m - m')
//     P = e^(S - m')                   l = alpha l + row sum of P
//     O = alpha O + P V
//   out = O / l,  lse = m + ln l
//
// -inf: a query that has seen no key yet has m = -inf; its P is 0, so l stays 0 and no NaN can
// arise; such a row ends as out 0, lse -inf.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive {

template <class T>
struct ForwardState {
  T *O, *V, *S;
  int64_t ld;  // of O
  alignas(64) T m[BLOCK_Q];
  alignas(64) T l[BLOCK_Q];

  ForwardState(const AttentionParams& p, Memory<T>& memory) : ld(round_up(p.value_dim, ROW_ALIGN)) {
    O = memory.take(BLOCK_Q * ld);
    V = memory.take(BLOCK_KV * ld);
    S = memory.take(BLOCK_Q * BLOCK_KV);
    for (int64_t q = 0; q < BLOCK_Q; ++q) m[q] = NEG_INFINITY<T>, l[q] = T(0);
    for (int64_t i = 0; i < BLOCK_Q * ld; ++i) O[i] = T(0);
  }
};

template <class T>
inline int64_t forward_bytes(const AdditiveParams& params) {
  const AttentionParams& p = params.attention;
  const int64_t value = round_up(p.value_dim, ROW_ALIGN);
  return sizeof(T) * (Projections<T>::elements(p) + padded_dim<T>(p.head_dim) +
                      (BLOCK_Q + BLOCK_KV) * value + BLOCK_Q * BLOCK_KV);
}

// P in place of the scores of one row; m, l and O follow.
template <class T>
inline void online_softmax_update(ForwardState<T>& w, int64_t q, int64_t columns) {
  using V = Vec<T>;
  T* row = w.S + q * BLOCK_KV;
  V top = V::broadcast(w.m[q]);
  for (int64_t j = 0; j < columns; j += V::WIDTH) top = V::max(top, V::load(row + j));
  T lanes[V::WIDTH];
  top.store(lanes);
  T m = w.m[q];
  // A NaN score hides in no comparison: whatever its lane holds, its own weight is NaN.
  for (T lane : lanes) m = lane > m ? lane : m;
  const bool empty = m == NEG_INFINITY<T>;
  const V shift = V::broadcast(empty ? T(0) : m), log2_e = V::broadcast(LOG2_E<T>);
  V sum = V::broadcast(T(0));
  for (int64_t j = 0; j < columns; j += V::WIDTH) {
    const V weight = exp2((V::load(row + j) - shift) * log2_e);
    weight.store(row + j);
    sum = sum + weight;
  }
  if (m != w.m[q] && w.m[q] != NEG_INFINITY<T>) {
    const T alpha = std::exp(w.m[q] - m);
    T* O = w.O + q * w.ld;
    const V factor = V::broadcast(alpha);
    for (int64_t d = 0; d < w.ld; d += V::WIDTH) (V::load(O + d) * factor).store(O + d);
    w.l[q] *= alpha;
  }
  w.m[q] = m;
  w.l[q] += sum.sum_lanes();
}

template <class T>
inline void write_rows(const QueryBlock<T>& block, const ForwardState<T>& w) {
  const AttentionParams& p = block.p;
  for (int64_t q = 0; q < block.rows; ++q) {
    const T l = w.l[q];
    char* out = const_cast<char*>(row_pointer(p.out, p.dtype, block.b, block.h, block.begin + q));
    store_row(w.O + q * w.ld, l == T(0) ? T(0) : T(1) / l, p.dtype, p.value_dim, out);
    *row_value<T>(p.lse, block.b, block.h, block.begin + q) =
        l == T(0) ? NEG_INFINITY<T> : w.m[q] + std::log(l);
  }
}

template <class T>
inline void forward_block(const AdditiveParams& params, int64_t b, int64_t h, int64_t q_begin,
                          void* scratch) {
  const AttentionParams& p = params.attention;
  Memory<T> memory{static_cast<T*>(scratch)};
  const QueryBlock<T> block(p, b, h, q_begin);
  ForwardState<T> w(p, memory);
  const ScoreVector<T> v(params, h, memory);
  Projections<T> x(block, v, memory);
  for (int64_t begin = block.keys.begin / BLOCK_KV * BLOCK_KV; begin < block.keys.end;
       begin += BLOCK_KV) {
    const int64_t end = min_of(begin + BLOCK_KV, block.keys.end), columns = end - begin;
    x.load_keys(begin, end);
    compute_scores(block, x, begin, end, v, w.S);
    for (int64_t q = 0; q < block.rows; ++q) online_softmax_update(w, q, columns);
    const Tile<T> V = load_vector_rows(p.value, p.dtype, b, h, begin, columns, p.value_dim, w.V);
    gemm<T, AOrder::ROWS, true>(block.rows, vectors<T>(p.value_dim), columns, w.S, BLOCK_KV, V.data,
                                V.ld, w.O, w.ld);
  }
  write_rows(block, w);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive
