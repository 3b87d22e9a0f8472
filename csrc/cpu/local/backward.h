#pragma once

#include "cpu/gemm.h"
#include "cpu/local/rows.h"

// Backward of local attention; P is recomputed from the saved LSE, in two passes.
//
//   delta = rowsum(dO * O) - dLSE,  A = dO V^T,  g = e^(-t^2 / 2),  t = (j - p) / sigma
//   luong:     W = P g,  dS = P (g A - delta),  u = W A
//   log_bias:  W = P,    dS = P (A - delta),    u = dS
//
//   queries: dQ = scale dS K,  dp = rowsum(u t) / sigma,  dsigma = rowsum(u t^2) / sigma
//   keys:    dK = dS^T (scale Q),  dV = W^T dO            for LOCAL_KEYS keys at a time
//
// Each result is a sum that one item forms in the order of the windows, so nothing depends on the
// number of threads; the pass over the keys looks at no query whose window does not meet its keys.
// -inf: a row that saw no key has lse = -inf; it is replaced by +inf, so that P = 0, and its dO and
// delta by 0 (what comes from above may be NaN).
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// Query rows as backward wants them.
template <class T>
struct GradientRow {
  QueryRow<T> query;
  T lse = T(0), delta = T(0);
};

// lse of one query, and its Q (scaled) and dO; delta is left alone.
template <class T>
inline void load_gradient_row(const LocalBackwardParams& params, int64_t b, int64_t h,
                              GradientRow<T>& row, T* Q, T* dO) {
  const LocalParams& p = params.forward;
  const int64_t at = row.query.row;
  load_row(p.query, p.dtype, b, h, at, p.head_dim, T(p.scale), Q);
  row.lse = *row_value<T>(p.lse, b, h, at);
  if (row.lse == NEG_INFINITY<T>) {
    row.lse = -NEG_INFINITY<T>;
    for (int64_t d = 0; d < paired<T>(p.value_dim); ++d) dO[d] = T(0);
  } else {
    load_row(params.grad_out, p.dtype, b, h, at, p.value_dim, T(1), dO);
  }
}

// Sums over the keys of one query, lane by lane.
template <class T>
struct PositionSums {
  Vec<T> u_t = Vec<T>::broadcast(T(0));
  Vec<T> u_t2 = Vec<T>::broadcast(T(0));
};

// dS in place of the scores s, W in place of a = dO V^T, for the keys of one step; 0 for those that
// the query does not see.
template <class T>
inline void score_gradients(const LocalParams& p, const GradientRow<T>& row, Range keys, T* s, T* a,
                            PositionSums<T>& sums) {
  using V = Vec<T>;
  const int64_t n = length_of(keys), padded = vectors<T>(n) * V::WIDTH;
  const Range own = own_keys(row.query, keys);
  if (own.end == 0) {
    for (int64_t j = 0; j < padded; ++j) s[j] = a[j] = T(0);
    return;
  }
  fill_unseen(s, own, n, NEG_INFINITY<T>);
  fill_unseen(a, own, n, T(0));
  const Gaussian<T> gaussian(row.query, keys.begin);
  const V lse = V::broadcast(row.lse), delta = V::broadcast(row.delta);
  const V log2e = V::broadcast(LOG2_E<T>);
  for (int64_t j = 0; j < padded; j += V::WIDTH) {
    V x = V::load(s + j), A = V::load(a + j);
    if (gaussian.flat) {
      const V P = exp2((x - lse) * log2e);
      (P * (A - delta)).store(s + j);
      P.store(a + j);
      continue;
    }
    const V t = gaussian.distance(j), exponent = gaussian.exponent(t);
    V u;
    if (p.log_bias) {
      const V P = exp2((x + exponent - lse) * log2e);
      u = P * (A - delta);
      u.store(s + j);
      P.store(a + j);
    } else {
      const V P = exp2((x - lse) * log2e), g = exp2(exponent * log2e);
      (P * (g * A - delta)).store(s + j);
      const V W = P * g;
      W.store(a + j);
      u = W * A;
    }
    sums.u_t = V::fma(u, t, sums.u_t);
    sums.u_t2 = V::fma(u * t, t, sums.u_t2);
  }
}

// dQ, dposition, dsigma and delta of up to LOCAL_ROWS queries.
template <class T>
struct LocalQueryGradients {
  using V = Vec<T>;
  const LocalBackwardParams& params;
  const LocalParams& p;
  int64_t b, h, count = 0;
  int64_t ld_q, ld_v;
  T *Q, *dO, *dQ, *S, *A, *buffers;
  GradientRow<T> rows[LOCAL_ROWS];
  PositionSums<T> sums[LOCAL_ROWS];
  QueryRow<T> queries[LOCAL_ROWS];

  static int64_t elements(const LocalParams& p) {
    return LOCAL_ROWS * (2 * paired<T>(p.head_dim) + paired<T>(p.value_dim)) +
           2 * TILE_ROWS * STEP_KEYS + KeyRows<T>::elements(p.dtype, p.head_dim) +
           KeyRows<T>::elements(p.dtype, p.value_dim) + paired<T>(p.value_dim);
  }

  LocalQueryGradients(const LocalBackwardParams& params_, int64_t b_, int64_t h_, T* memory)
      : params(params_),
        p(params_.forward),
        b(b_),
        h(h_),
        ld_q(paired<T>(p.head_dim)),
        ld_v(paired<T>(p.value_dim)) {
    Q = memory;
    dQ = Q + LOCAL_ROWS * ld_q;
    dO = dQ + LOCAL_ROWS * ld_q;
    S = dO + LOCAL_ROWS * ld_v;
    A = S + TILE_ROWS * STEP_KEYS;
    buffers = A + TILE_ROWS * STEP_KEYS;
  }

  void add_query(const QueryRow<T>& query) {
    GradientRow<T>& row = rows[count];
    row.query = queries[count] = query;
    load_gradient_row(params, b, h, row, Q + count * ld_q, dO + count * ld_v);
    if (row.lse != -NEG_INFINITY<T>) row.delta = delta_of(query.row, dO + count * ld_v);
    *row_value<T>(params.delta, b, h, query.row) = row.delta;
    for (int64_t d = 0; d < ld_q; ++d) dQ[count * ld_q + d] = T(0);
    ++count;
  }

  T delta_of(int64_t row, const T* dO_row) {
    T* O = buffers;
    load_row(p.out, p.dtype, b, h, row, p.value_dim, T(1), O);
    V sum = V::broadcast(T(0));
    for (int64_t d = 0; d < ld_v; d += V::WIDTH) {
      sum = V::fma(V::load(O + d), V::load(dO_row + d), sum);
    }
    const T delta = sum.sum_lanes();
    return params.grad_lse.data == nullptr ? delta
                                           : delta - *row_value<T>(params.grad_lse, b, h, row);
  }

  void run() {
    const auto step = [&](const RowTile& tile, Range keys, KeyRows<T>& K, KeyRows<T>& values) {
      const int64_t n = length_of(keys), at = tile.first;
      multiply_keys(Q + at * ld_q, ld_q, tile.count, K.rows(keys), n, p.head_dim, S);
      multiply_keys(dO + at * ld_v, ld_v, tile.count, values.rows(keys), n, p.value_dim, A);
      for (int64_t r = 0; r < tile.count; ++r) {
        score_gradients(p, rows[at + r], keys, S + r * STEP_KEYS, A + r * STEP_KEYS, sums[at + r]);
      }
      add_weighted(S, tile.count, K.rows(keys), n, p.head_dim, dQ + at * ld_q, ld_q);
    };
    walk_block(p, b, h, queries, count, buffers, step);
  }

  void write() const {
    for (int64_t i = 0; i < count; ++i) {
      const T inverse = queries[i].inverse_sigma;
      write_row(queries[i].row, dQ + i * ld_q, sums[i].u_t.sum_lanes() * inverse,
                sums[i].u_t2.sum_lanes() * inverse);
    }
  }

  void write_row(int64_t row, const T* gradient, T d_position, T d_sigma) const {
    char* to = const_cast<char*>(row_pointer(params.grad_query, p.dtype, b, h, row));
    store_row(gradient, T(p.scale), p.dtype, p.head_dim, to);
    *row_value<T>(params.grad_position, b, h, row) = d_position;
    if (params.grad_sigma.data != nullptr) *row_value<T>(params.grad_sigma, b, h, row) = d_sigma;
  }
};

template <class T>
inline void local_backward_queries(const LocalBackwardParams& params, int64_t b, int64_t h,
                                   const LocalOrder& order, int64_t begin, void* memory) {
  const LocalParams& p = params.forward;
  LocalQueryGradients<T> block(params, b, h, static_cast<T*>(memory));
  const int64_t length = local_key_length(p, b), end = min_of(begin + LOCAL_ROWS, p.len_q);
  for (int64_t i = begin; i < min_of(end, order.seeing); ++i) {
    block.add_query(query_row<T>(p, b, h, order.rows[i], length));
  }
  block.run();
  block.write();
  for (int64_t d = 0; d < block.ld_q; ++d) block.dQ[d] = T(0);
  for (int64_t i = max_of(begin, order.seeing); i < end; ++i) {
    block.write_row(order.rows[i], block.dQ, T(0), T(0));
    *row_value<T>(params.delta, b, h, order.rows[i]) = T(0);
  }
}

// dK and dV of LOCAL_KEYS keys of one key/value head.
template <class T>
struct LocalKeyGradients {
  const LocalBackwardParams& params;
  const LocalParams& p;
  int64_t b, h_kv;
  Range chunk;  // the keys that exist
  int64_t ld_q, ld_v;
  T *Q, *dO, *dK, *dV, *S, *A;
  KeyRows<T> K, values;

  static int64_t elements(const LocalParams& p) {
    return (TILE_ROWS + LOCAL_KEYS) * (paired<T>(p.head_dim) + paired<T>(p.value_dim)) +
           2 * TILE_ROWS * STEP_KEYS + KeyRows<T>::elements(p.dtype, p.head_dim) +
           KeyRows<T>::elements(p.dtype, p.value_dim);
  }

  LocalKeyGradients(const LocalBackwardParams& params_, int64_t b_, int64_t h_kv_, Range chunk_,
                    T* memory)
      : params(params_),
        p(params_.forward),
        b(b_),
        h_kv(h_kv_),
        chunk(chunk_),
        ld_q(paired<T>(p.head_dim)),
        ld_v(paired<T>(p.value_dim)),
        Q(memory),
        dO(Q + TILE_ROWS * ld_q),
        dK(dO + TILE_ROWS * ld_v),
        dV(dK + LOCAL_KEYS * ld_q),
        S(dV + LOCAL_KEYS * ld_v),
        A(S + TILE_ROWS * STEP_KEYS),
        K(p.key, p.dtype, b, h_kv, p.head_dim, A + TILE_ROWS * STEP_KEYS),
        values(p.value, p.dtype, b, h_kv, p.value_dim,
               A + TILE_ROWS * STEP_KEYS + KeyRows<T>::elements(p.dtype, p.head_dim)) {
    for (int64_t i = 0; i < LOCAL_KEYS * (ld_q + ld_v); ++i) dK[i] = T(0);
    K.start(chunk.begin);
    values.start(chunk.begin);
  }

  // Queries of the order whose windows meet the chunk, tile by tile.
  void add_head(int64_t h, const LocalOrder& order) {
    const int64_t length = local_key_length(p, b);
    int64_t first = 0, end = order.seeing;
    for (int64_t high = end; first < high;) {
      const int64_t middle = (first + high) / 2;
      if (query_row<T>(p, b, h, order.rows[middle], length).keys.end > chunk.begin) {
        high = middle;
      } else {
        first = middle + 1;
      }
    }
    while (first < end) {
      QueryRow<T> queries[TILE_ROWS];
      int64_t count = 0;
      for (int64_t i = first; i < min_of(first + TILE_ROWS, end); ++i) {
        QueryRow<T> query = query_row<T>(p, b, h, order.rows[i], length);
        if (query.keys.begin >= chunk.end) end = i;
        if (i == end) break;
        query.keys = intersect(query.keys, chunk);
        queries[count++] = query;
      }
      if (count == 0) return;
      const RowTile tile = row_tile(queries, 0, count);
      add_tile(h, queries, tile);
      first += tile.count;
    }
  }

  void add_tile(int64_t h, const QueryRow<T>* queries, const RowTile& tile) {
    GradientRow<T> rows[TILE_ROWS];
    for (int64_t r = 0; r < tile.count; ++r) {
      rows[r].query = queries[r];
      load_gradient_row(params, b, h, rows[r], Q + r * ld_q, dO + r * ld_v);
      rows[r].delta = *row_value<T>(params.delta, b, h, queries[r].row);
    }
    const int64_t n = length_of(tile.keys), at = tile.keys.begin - chunk.begin;
    multiply_keys(Q, ld_q, tile.count, K.rows(tile.keys), n, p.head_dim, S);
    multiply_keys(dO, ld_v, tile.count, values.rows(tile.keys), n, p.value_dim, A);
    PositionSums<T> unused;
    for (int64_t r = 0; r < tile.count; ++r) {
      score_gradients(p, rows[r], tile.keys, S + r * STEP_KEYS, A + r * STEP_KEYS, unused);
    }
    gemm<T, AOrder::COLUMNS, true>(n, vectors<T>(p.head_dim), tile.count, S, STEP_KEYS, Q, ld_q,
                                   dK + at * ld_q, ld_q);
    gemm<T, AOrder::COLUMNS, true>(n, vectors<T>(p.value_dim), tile.count, A, STEP_KEYS, dO, ld_v,
                                   dV + at * ld_v, ld_v);
  }
};

template <class T>
inline void local_backward_keys(const LocalBackwardParams& params, int64_t b, int64_t h_kv,
                                const LocalOrder* orders, int64_t begin, void* memory) {
  const LocalParams& p = params.forward;
  const int64_t end = min_of(begin + LOCAL_KEYS, p.len_k), group = p.heads_q / p.heads_kv;
  const Range exist{begin, max_of(begin, min_of(end, local_key_length(p, b)))};
  LocalKeyGradients<T> sums(params, b, h_kv, exist, static_cast<T*>(memory));
  if (exist.begin < exist.end) {
    for (int64_t g = 0; g < group; ++g) sums.add_head(h_kv * group + g, orders[g]);
  }
  for (int64_t j = begin; j < end; ++j) {
    store_row(sums.dK + (j - begin) * sums.ld_q, T(1), p.dtype, p.head_dim,
              const_cast<char*>(row_pointer(params.grad_key, p.dtype, b, h_kv, j)));
    store_row(sums.dV + (j - begin) * sums.ld_v, T(1), p.dtype, p.value_dim,
              const_cast<char*>(row_pointer(params.grad_value, p.dtype, b, h_kv, j)));
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
