#pragma once

#include "cpu/local/rows.h"

// Forward of local attention by online softmax, up to LOCAL_ROWS queries of one head.
//
//   S  = scale * Q K^T   (log_bias: - t^2 / 2)      -inf outside of a query's window
//   m' = max(m, row max of S),  alpha = e^(m - m'),  P = e^(S - m'),  l = alpha * l + row sum of P
//   O  = alpha * O + W V                            W = P e^(-t^2 / 2) (log_bias: P)
//   out = O / l,  lse = m + ln l
//
// l sums P and not W: the Gaussian is not in the denominator. -inf: until a query has seen a key m
// is -inf and is taken as 0 in exponents, so that every weight is e^-inf = 0.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
struct LocalForward {
  using V = Vec<T>;
  const LocalParams& p;
  int64_t b, h, count = 0;
  int64_t ld_q, ld_v;
  T *Q, *O, *S, *buffers;
  T m[LOCAL_ROWS], l[LOCAL_ROWS];
  QueryRow<T> queries[LOCAL_ROWS];

  static int64_t elements(const LocalParams& p) {
    return LOCAL_ROWS * (paired<T>(p.head_dim) + paired<T>(p.value_dim)) + TILE_ROWS * STEP_KEYS +
           KeyRows<T>::elements(p.dtype, p.head_dim) + KeyRows<T>::elements(p.dtype, p.value_dim);
  }

  LocalForward(const LocalParams& params, int64_t b_, int64_t h_, T* memory)
      : p(params), b(b_), h(h_), ld_q(paired<T>(p.head_dim)), ld_v(paired<T>(p.value_dim)) {
    Q = memory;
    O = Q + LOCAL_ROWS * ld_q;
    S = O + LOCAL_ROWS * ld_v;
    buffers = S + TILE_ROWS * STEP_KEYS;
  }

  void add_query(const QueryRow<T>& query) {
    load_row(p.query, p.dtype, b, h, query.row, p.head_dim, T(p.scale), Q + count * ld_q);
    for (int64_t d = 0; d < ld_v; ++d) O[count * ld_v + d] = T(0);
    m[count] = NEG_INFINITY<T>;
    l[count] = T(0);
    queries[count++] = query;
  }

  void run() {
    const auto step = [&](const RowTile& tile, Range keys, KeyRows<T>& K, KeyRows<T>& values) {
      const int64_t n = length_of(keys);
      multiply_keys(Q + tile.first * ld_q, ld_q, tile.count, K.rows(keys), n, p.head_dim, S);
      for (int64_t r = 0; r < tile.count; ++r) {
        online_softmax_update(tile.first + r, keys, S + r * STEP_KEYS);
      }
      add_weighted(S, tile.count, values.rows(keys), n, p.value_dim, O + tile.first * ld_v, ld_v);
    };
    walk_block(p, b, h, queries, count, buffers, step);
  }

  // m, l and O of query i, weights in place of its scores s.
  void online_softmax_update(int64_t i, Range keys, T* s) {
    const int64_t n = length_of(keys), vecs = vectors<T>(n);
    const Range own = own_keys(queries[i], keys);
    if (own.end == 0) {
      for (int64_t j = 0; j < n; ++j) s[j] = T(0);
      return;
    }
    fill_unseen(s, own, n, NEG_INFINITY<T>);
    const Gaussian<T> gaussian(queries[i], keys.begin);
    const bool added = p.log_bias && !gaussian.flat, multiplied = !p.log_bias && !gaussian.flat;
    V top = V::broadcast(m[i]);
    for (int64_t j = 0; j < vecs * V::WIDTH; j += V::WIDTH) {
      V x = V::load(s + j);
      if (added) (x = x + gaussian.exponent(gaussian.distance(j))).store(s + j);
      top = V::max(top, x);
    }
    const T m_new = top.max_lanes();
    const T finite = m_new == NEG_INFINITY<T> ? T(0) : m_new;
    const V shift = V::broadcast(finite), log2e = V::broadcast(LOG2_E<T>);
    V sum = V::broadcast(T(0));
    for (int64_t j = 0; j < vecs * V::WIDTH; j += V::WIDTH) {
      V weight = exp2((V::load(s + j) - shift) * log2e);
      sum = sum + weight;
      if (multiplied) weight = weight * exp2(gaussian.exponent(gaussian.distance(j)) * log2e);
      weight.store(s + j);
    }
    T alpha[V::WIDTH];
    exp2((V::broadcast(m[i]) - shift) * log2e).store(alpha);
    if (alpha[0] != T(1)) {
      T* out = O + i * ld_v;
      for (int64_t d = 0; d < ld_v; ++d) out[d] *= alpha[0];
    }
    l[i] = l[i] * alpha[0] + sum.sum_lanes();
    m[i] = m_new;
  }

  void write() const {
    for (int64_t i = 0; i < count; ++i) write_row(queries[i].row, l[i], m[i], O + i * ld_v);
  }

  void write_row(int64_t row, T sum, T shift, const T* out) const {
    const T inverse = sum == T(0) ? T(0) : T(1) / sum;
    char* to = const_cast<char*>(row_pointer(p.out, p.dtype, b, h, row));
    store_row(out, inverse, p.dtype, p.value_dim, to);
    const T lse = sum == T(0) ? NEG_INFINITY<T> : shift + T(::log(sum));
    *row_value<T>(p.lse, b, h, row) = lse;
  }
};

template <class T>
inline void local_forward(const LocalParams& p, int64_t b, int64_t h, const LocalOrder& order,
                          int64_t begin, void* memory) {
  LocalForward<T> block(p, b, h, static_cast<T*>(memory));
  const int64_t length = local_key_length(p, b), end = min_of(begin + LOCAL_ROWS, p.len_q);
  for (int64_t i = begin; i < min_of(end, order.seeing); ++i) {
    block.add_query(query_row<T>(p, b, h, order.rows[i], length));
  }
  block.run();
  block.write();
  for (int64_t d = 0; d < block.ld_v; ++d) block.O[d] = T(0);
  for (int64_t i = max_of(begin, order.seeing); i < end; ++i) {
    block.write_row(order.rows[i], T(0), T(0), block.O);
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
