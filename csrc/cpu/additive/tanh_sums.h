#pragma once

#include "cpu/tiles.h"

// Sums of tanh over tiles of queries and keys: the scores, and what their gradients need.
//
//   x = e^(2q) e^(2k)     tanh(q + k) = (x - 1) / (x + 1) = 1 - 2 / (x + 1)
//
// The exponentials belong to rows: one for each element of a tile of rows, none for a pair of a
// query and a key. Their product has a relative error of a few ulp wherever q + k cancels, so the
// tanh has an absolute one (expm1(2q) and expm1(2k) would be exact near 0, but their sums cancel
// like e^(2q) - e^(2q)). Two quotients cost one division, a/b + c/d = (ad + cb) / bd: a product of
// two x + 1 must not overflow, which holds where all |q| and |k| of a tile are below BOUND.
// Elsewhere tiles hold q and k themselves and x = e^(2(q + k)), an exponential and a division for
// each pair: the template argument EXACT.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive {

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float BOUND = 9.f;       // (1 + e^36)^2 < 2e31
  static constexpr float LARGEST_V = 1e6f;  // times that, still finite
  static constexpr float SATURATED = 36.f;  // e^-36 is far below half an ulp of 1
  static constexpr float LN2_HIGH = 0.693145751953125f, LN2_LOW = 1.42860677e-6f;
  static constexpr int DEGREE = 7;  // the Taylor remainder of e^r, |r| < 0.35, is below 6e-9
};
template <>
struct Limits<double> {
  static constexpr double BOUND = 80.0;  // (1 + e^320)^2 < 1e278
  static constexpr double LARGEST_V = 1e29;
  static constexpr double SATURATED = 320.0;
  static constexpr double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770e-10;
  static constexpr int DEGREE = 13;
};

constexpr double INVERSE_FACTORIAL[] = {1.0,
                                        1.0,
                                        1.0 / 2,
                                        1.0 / 6,
                                        1.0 / 24,
                                        1.0 / 120,
                                        1.0 / 720,
                                        1.0 / 5040,
                                        1.0 / 40320,
                                        1.0 / 362880,
                                        1.0 / 3628800,
                                        1.0 / 39916800,
                                        1.0 / 479001600,
                                        1.0 / 6227020800.0};

// e^(2x), the exponent clamped to +-SATURATED; NaN gives NaN. Two parts of ln 2 keep the reduced
// argument exact, so the relative error does not grow with x.
template <class T>
inline Vec<T> exp_twice(Vec<T> x) {
  using V = Vec<T>;
  using L = Limits<T>;
  const V zero = V::broadcast(T(0));
  const V low = V::broadcast(-L::SATURATED);
  const V y = zero - V::max(low, zero - V::max(low, x + x));
  const V n = V::round(y * V::broadcast(LOG2_E<T>));
  const V r = V::fma(n, V::broadcast(-L::LN2_LOW), V::fma(n, V::broadcast(-L::LN2_HIGH), y));
  V p = V::broadcast(T(INVERSE_FACTORIAL[L::DEGREE]));
#pragma GCC unroll 13
  for (int i = L::DEGREE - 1; i >= 0; --i) p = V::fma(p, r, V::broadcast(T(INVERSE_FACTORIAL[i])));
  return V::scale_by_power(p, n);
}

// Two vectors share a division, so rows are padded to whole pairs of them. 16 more keep rows of
// 2^n elements from sharing the sets of a cache.
template <class T>
inline int64_t padded_dim(int64_t dim) {
  return round_up(dim, 2 * max_of(Vec<T>::WIDTH, 8));
}
template <class T>
inline int64_t row_stride(int64_t dim) {
  return padded_dim<T>(dim) + 16;
}

// Rows [row, row + n) of x in the computed type, zero in the padding and up to `padded_rows`.
// Returns the largest magnitude, whatever is NaN aside.
template <class T>
inline T load_projections(const Operand& x, DType dtype, int64_t b, int64_t h, int64_t row,
                          int64_t n, int64_t padded_rows, int64_t dim, T* dst) {
  using V = Vec<T>;
  const int64_t ld = row_stride<T>(dim), width = padded_dim<T>(dim);
  const char* src = row_pointer(x, dtype, b, h, row);
  const V zero = V::broadcast(T(0));
  V largest = zero;
  for (int64_t i = 0; i < padded_rows; ++i) {
    T* at = dst + i * ld;
    if (i < n) convert_row(src + i * x.row * element_size(dtype), dtype, dim, at);
    for (int64_t d = i < n ? dim : 0; d < width; ++d) at[d] = T(0);
    for (int64_t d = 0; d < width; d += V::WIDTH) {
      const V value = V::load(at + d);
      largest = V::max(V::max(value, zero - value), largest);
    }
  }
  T lanes[V::WIDTH], bound = T(0);
  largest.store(lanes);
  for (T lane : lanes) bound = lane > bound ? lane : bound;
  return bound;
}

template <class T>
inline void exponentiate(int64_t rows, int64_t dim, T* x) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; ++i) {
    T* row = x + i * row_stride<T>(dim);
    for (int64_t d = 0; d < padded_dim<T>(dim); d += V::WIDTH) {
      exp_twice(V::load(row + d)).store(row + d);
    }
  }
}

// x + 1 of one vector of dims.
template <class T, bool EXACT>
inline Vec<T> exp_plus_one(Vec<T> q, Vec<T> k) {
  const Vec<T> one = Vec<T>::broadcast(T(1));
  return EXACT ? exp_twice(q + k) + one : Vec<T>::fma(q, k, one);
}

// v tanh of two vectors of dims, added up lane by lane; vq is v e^(2q), which EXACT has no use for.
template <class T, bool EXACT>
inline Vec<T> tanh_pair(Vec<T> q1, Vec<T> q2, Vec<T> vq1, Vec<T> vq2, Vec<T> k1, Vec<T> k2,
                        Vec<T> v1, Vec<T> v2) {
  using V = Vec<T>;
  if (EXACT) {
    const V one = V::broadcast(T(1)), x1 = exp_twice(q1 + k1), x2 = exp_twice(q2 + k2);
    return V::fma(v1, (x1 - one) / (x1 + one), v2 * ((x2 - one) / (x2 + one)));
  }
  const V p1 = exp_plus_one<T, false>(q1, k1), p2 = exp_plus_one<T, false>(q2, k2);
  const V m1 = vq1 * k1 - v1, m2 = vq2 * k2 - v2;  // v (x - 1)
  return V::fma(m2, p1, m1 * p2) / (p1 * p2);
}

// Queries and keys whose sums stay in registers, dims in the lanes.
#if defined(FUSED_ATTENTION_VEC_AVX512)
constexpr int ROWS = 4, COLUMNS = 4;
#else
constexpr int ROWS = 2, COLUMNS = 2;
#endif

// S[i][j] = sum_d v[d] tanh(q[i][d] + k[j][d]) for R queries and COLUMNS keys.
template <class T, bool EXACT, int R>
inline void score_block(const T* Q, const T* vQ, const T* K, const T* v, int64_t ld, int64_t width,
                        T* S) {
  using V = Vec<T>;
  constexpr int SUMS = R * COLUMNS, GROUPS = (SUMS + V::WIDTH - 1) / V::WIDTH;
  V sum[GROUPS * V::WIDTH];
#pragma GCC unroll 16
  for (int i = 0; i < GROUPS * V::WIDTH; ++i) sum[i] = V::broadcast(T(0));
  for (int64_t d = 0; d < width; d += 2 * V::WIDTH) {
    const int64_t e = d + V::WIDTH;
    const V v1 = V::load(v + d), v2 = V::load(v + e);
    V k1[COLUMNS], k2[COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) {
      k1[j] = V::load(K + j * ld + d);
      k2[j] = V::load(K + j * ld + e);
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      const V q1 = V::load(Q + i * ld + d), q2 = V::load(Q + i * ld + e);
      const V vq1 = V::load(vQ + i * ld + d), vq2 = V::load(vQ + i * ld + e);
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j) {
        V& s = sum[i * COLUMNS + j];
        s = s + tanh_pair<T, EXACT>(q1, q2, vq1, vq2, k1[j], k2[j], v1, v2);
      }
    }
  }
  T sums[GROUPS * V::WIDTH];
#pragma GCC unroll 4
  for (int g = 0; g < GROUPS; ++g) V::sum_each(sum + g * V::WIDTH).store(sums + g * V::WIDTH);
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < COLUMNS; ++j) S[i * BLOCK_KV + j] = sums[i * COLUMNS + j];
  }
}

// Scores of a tile, [queries][BLOCK_KV]. Columns are filled up to a multiple of COLUMNS, by
// whatever the buffer of keys holds there.
template <class T, bool EXACT>
inline void score_tile(const T* Q, const T* vQ, int64_t rows, const T* K, int64_t columns,
                       const T* v, int64_t dim, T* S) {
  const int64_t ld = row_stride<T>(dim), width = padded_dim<T>(dim);
  for (int64_t j = 0; j < columns; j += COLUMNS) {
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS) {
      score_block<T, EXACT, ROWS>(Q + i * ld, vQ + i * ld, K + j * ld, v, ld, width,
                                  S + i * BLOCK_KV + j);
    }
    for (; i < rows; ++i) {
      score_block<T, EXACT, 1>(Q + i * ld, vQ + i * ld, K + j * ld, v, ld, width,
                               S + i * BLOCK_KV + j);
    }
  }
}

// For R queries and one vector of dims, over all keys of a tile, with u = dS t, w = dS - u t and t
// the tanh: dQ[i] += sum_j w, dK[j] += sum_i w, and sum_ij u is returned.
template <class T, bool EXACT, int R>
inline Vec<T> gradient_block(const T* Q, const T* K, int64_t ld, int64_t columns, const T* dS,
                             T* dQ, T* dK) {
  using V = Vec<T>;
  const V one = V::broadcast(T(1)), two = V::broadcast(T(2));
  V q[R], dq[R], sum = V::broadcast(T(0));
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
    q[i] = V::load(Q + i * ld);
    dq[i] = V::broadcast(T(0));
  }
  for (int64_t j = 0; j < columns; ++j) {
    const V k = V::load(K + j * ld);
    V dk = V::load(dK + j * ld);
#pragma GCC unroll 2
    for (int i = 0; i < R; i += 2) {
      const V p1 = exp_plus_one<T, EXACT>(q[i], k), p2 = exp_plus_one<T, EXACT>(q[i + 1], k);
      const V both = two / (p1 * p2);
      const V t1 = one - p2 * both, t2 = one - p1 * both;
      const V ds1 = V::broadcast(dS[i * BLOCK_KV + j]);
      const V ds2 = V::broadcast(dS[(i + 1) * BLOCK_KV + j]);
      const V u1 = ds1 * t1, u2 = ds2 * t2;
      const V w1 = ds1 - u1 * t1, w2 = ds2 - u2 * t2;
      dq[i] = dq[i] + w1;
      dq[i + 1] = dq[i + 1] + w2;
      dk = dk + (w1 + w2);
      sum = sum + (u1 + u2);
    }
    dk.store(dK + j * ld);
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) (V::load(dQ + i * ld) + dq[i]).store(dQ + i * ld);
  return sum;
}

// The same for a tile: dQ and dK grow, sums[d] grows by sum_ij u. `rows` is even: a row that is
// there to make it so has dS = 0.
template <class T, bool EXACT>
inline void gradient_tile(const T* Q, int64_t rows, const T* K, int64_t columns, const T* dS,
                          int64_t dim, T* dQ, T* dK, T* sums) {
  using V = Vec<T>;
  const int64_t ld = row_stride<T>(dim);
  for (int64_t d = 0; d < dim; d += V::WIDTH) {
    V sum = V::load(sums + d);
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) {
      sum = sum + gradient_block<T, EXACT, 4>(Q + i * ld + d, K + d, ld, columns, dS + i * BLOCK_KV,
                                              dQ + i * ld + d, dK + d);
    }
    for (; i < rows; i += 2) {
      sum = sum + gradient_block<T, EXACT, 2>(Q + i * ld + d, K + d, ld, columns, dS + i * BLOCK_KV,
                                              dQ + i * ld + d, dK + d);
    }
    sum.store(sums + d);
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive
