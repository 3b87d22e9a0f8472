#pragma once

#include "tiles.h"

// The two products of decoding. A few rows of queries meet rows of the cache where they lie, given
// by pointers, so that pages of any size cost nothing here; each cache row is loaded and converted
// once for a tile of up to 8 query rows.
//
//   S[r][j]  = sum_d Q[r][d] * K[j][d]     lanes = dims, added up at the end for WIDTH sums at once
//   O[r][d] += sum_j P[r][j] * V[j][d]     lanes = dims, the sums stay in registers
//
// Rows are walked in pairs of vectors. Two vectors of bf16 come from one load, the elements at even
// places first, then those at odd places: Q is laid out in that order and O comes out in it.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

constexpr int64_t DECODE_KEYS = 64;  // keys of one step; their K and V rows stay in L1 and L2

template <class T>
constexpr int64_t PAIR = 2 * Vec<T>::WIDTH;

template <class T, DType DTYPE>
struct CacheRow {  // fp32 and fp64, which need no conversion
  using V = Vec<T>;
  static constexpr int64_t BYTES = sizeof(T);
  static void load_pair(const char* at, V& a, V& b) {
    const T* x = reinterpret_cast<const T*>(at);
    a = V::load(x);
    b = V::load(x + V::WIDTH);
  }
};

template <>
struct CacheRow<float, DType::BFLOAT16> {
  using V = Vec<float>;
  static constexpr int64_t BYTES = 2;
  static void load_pair(const char* at, V& a, V& b) {
    V::load_bf16_pairs(reinterpret_cast<const uint16_t*>(at), a, b);
  }
};

template <>
struct CacheRow<float, DType::FLOAT16> {
  using V = Vec<float>;
  static constexpr int64_t BYTES = 2;
  static void load_pair(const char* at, V& a, V& b) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(at);
    a = V::load_fp16(x);
    b = V::load_fp16(x + V::WIDTH);
  }
};

// The last `count` elements of a row and zeros: never read beyond it, NaN may follow.
template <class T, DType DTYPE>
inline void load_tail(const char* at, int64_t count, Vec<T>& a, Vec<T>& b) {
  alignas(64) char tail[PAIR<T> * CacheRow<T, DTYPE>::BYTES] = {};
  std::memcpy(tail, at, count * CacheRow<T, DTYPE>::BYTES);
  CacheRow<T, DTYPE>::load_pair(tail, a, b);
}

// n elements (whole pairs of vectors) times `factor` in the order of pairs, and back.
template <class T>
inline void to_pairs(const T* src, DType dtype, int64_t n, T factor, T* dst) {
  constexpr int64_t WIDTH = Vec<T>::WIDTH;
  const bool split = dtype == DType::BFLOAT16;
  for (int64_t d = 0; d < n; d += PAIR<T>) {
    for (int64_t i = 0; i < WIDTH; ++i) {
      dst[d + i] = src[d + (split ? 2 * i : i)] * factor;
      dst[d + WIDTH + i] = src[d + (split ? 2 * i + 1 : WIDTH + i)] * factor;
    }
  }
}

template <class T>
inline void from_pairs(const T* src, DType dtype, int64_t n, T* dst) {
  constexpr int64_t WIDTH = Vec<T>::WIDTH;
  const bool split = dtype == DType::BFLOAT16;
  for (int64_t d = 0; d < n; d += PAIR<T>) {
    for (int64_t i = 0; i < WIDTH; ++i) {
      dst[d + (split ? 2 * i : i)] = src[d + i];
      dst[d + (split ? 2 * i + 1 : WIDTH + i)] = src[d + WIDTH + i];
    }
  }
}

// Rows of the cache that the next step needs. They are fetched into L2 while this one is computed:
// the processor's own prefetching does not keep memory busy across the arithmetic of a step.
struct ComingRows {
  const char* const* rows = nullptr;
  int64_t count = 0, bytes = 0;

  void fetch(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < min_of(end, count); ++j) {
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows[j] + at, 0, 2);
    }
  }
};

template <int N>
struct RowCount {
  static constexpr int VALUE = N;
};

// f(RowCount, first row) for tiles of 8, 4, 2 and 1 rows. A tile of R rows takes WIDTH / R keys at
// once, so that it has WIDTH dot products under way.
template <class T, class F>
inline void for_row_tiles(int64_t rows, const F& f) {
  int64_t r = 0;
  if constexpr (Vec<T>::WIDTH >= 16) {
    for (; r + 8 <= rows; r += 8) f(RowCount<8>{}, r);
  }
  if constexpr (Vec<T>::WIDTH >= 4) {
    for (; r + 4 <= rows; r += 4) f(RowCount<4>{}, r);
  }
  for (; r + 2 <= rows; r += 2) f(RowCount<2>{}, r);
  if (r < rows) f(RowCount<1>{}, r);
}

// sums[r * KEYS + i] += Q[r] . K[i] over one pair of vectors; load(i, a, b) gives that of key i.
// What there is less of stays in registers, the other is read as operands of the FMAs.
template <class T, int R, int KEYS, class Load>
inline void add_products(const T* q, int64_t ld_q, const Load& load, Vec<T>* sums) {
  using V = Vec<T>;
  if constexpr (R <= KEYS) {
    V qa[R], qb[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      qa[r] = V::load(q + r * ld_q);
      qb[r] = V::load(q + r * ld_q + V::WIDTH);
    }
#pragma GCC unroll 16
    for (int i = 0; i < KEYS; ++i) {
      V a, b;
      load(i, a, b);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        sums[r * KEYS + i] = V::fma(qb[r], b, V::fma(qa[r], a, sums[r * KEYS + i]));
      }
    }
  } else {
    V a[KEYS], b[KEYS];
#pragma GCC unroll 16
    for (int i = 0; i < KEYS; ++i) load(i, a[i], b[i]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V qa = V::load(q + r * ld_q), qb = V::load(q + r * ld_q + V::WIDTH);
#pragma GCC unroll 16
      for (int i = 0; i < KEYS; ++i) {
        sums[r * KEYS + i] = V::fma(qb, b[i], V::fma(qa, a[i], sums[r * KEYS + i]));
      }
    }
  }
}

// S of R rows and `count` keys; Q is padded with zeros to whole pairs. The last keys of S up to a
// multiple of WIDTH / R get the last key's score.
template <class T, DType DTYPE, int R>
inline void dot_rows(const T* q, int64_t ld_q, const char* const* keys, int64_t count, int64_t dim,
                     T* s, const ComingRows& coming) {
  using V = Vec<T>;
  using Row = CacheRow<T, DTYPE>;
  constexpr int KEYS = V::WIDTH / R;
  const int64_t whole = dim / PAIR<T> * PAIR<T>;
  for (int64_t j = 0; j < count; j += KEYS) {
    const char* k[KEYS];
    for (int i = 0; i < KEYS; ++i) k[i] = keys[min_of(j + i, count - 1)];
    coming.fetch(j, j + KEYS);
    V sums[V::WIDTH];
#pragma GCC unroll 16
    for (int i = 0; i < V::WIDTH; ++i) sums[i] = V::broadcast(T(0));
    for (int64_t d = 0; d < whole; d += PAIR<T>) {
      const auto load = [&](int i, V& a, V& b) { Row::load_pair(k[i] + d * Row::BYTES, a, b); };
      add_products<T, R, KEYS>(q + d, ld_q, load, sums);
    }
    if (whole < dim) {
      const auto load = [&](int i, V& a, V& b) {
        load_tail<T, DTYPE>(k[i] + whole * Row::BYTES, dim - whole, a, b);
      };
      add_products<T, R, KEYS>(q + whole, ld_q, load, sums);
    }
    T found[V::WIDTH];
    V::sum_each(sums).store(found);
    for (int r = 0; r < R; ++r) {
      std::memcpy(s + r * DECODE_KEYS + j, found + r * KEYS, KEYS * sizeof(T));
    }
  }
}

// O += P V of R rows in PAIRS pairs of vectors; load(j, n, a, b) gives pair n of V's row j.
template <class T, int R, int PAIRS, class Load>
inline void add_value_panel(const T* p, int64_t count, const Load& load, T* o, int64_t ld_o,
                            const ComingRows& coming) {
  using V = Vec<T>;
  V sums[R][2 * PAIRS];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < 2 * PAIRS; ++n) sums[r][n] = V::broadcast(T(0));
  }
  for (int64_t j = 0; j < count; ++j) {
    V v[2 * PAIRS];
#pragma GCC unroll 4
    for (int n = 0; n < PAIRS; ++n) load(j, n, v[2 * n], v[2 * n + 1]);
    coming.fetch(j, j + 1);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V weight = V::broadcast(p[r * DECODE_KEYS + j]);
#pragma GCC unroll 8
      for (int n = 0; n < 2 * PAIRS; ++n) sums[r][n] = V::fma(weight, v[n], sums[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < 2 * PAIRS; ++n) {
      T* at = o + r * ld_o + n * V::WIDTH;
      (V::load(at) + sums[r][n]).store(at);
    }
  }
}

// O [R][ld_o] += P [R][DECODE_KEYS] V, all dims; 16 sums stay in registers, with AVX2 and SSE 8.
template <class T, DType DTYPE, int R>
inline void add_values(const T* p, const char* const* values, int64_t count, int64_t dim, T* o,
                       int64_t ld_o, ComingRows coming) {
  using V = Vec<T>;
  using Row = CacheRow<T, DTYPE>;
  constexpr int SUMS = sizeof(V) == 64 ? 16 : 8;
  constexpr int PAIRS = SUMS / 2 / R < 1 ? 1 : SUMS / 2 / R > 4 ? 4 : SUMS / 2 / R;
  int64_t at = 0;
  for (; at + PAIRS * PAIR<T> <= dim; at += PAIRS * PAIR<T>) {
    const auto load = [&](int64_t j, int n, V& a, V& b) {
      Row::load_pair(values[j] + (at + n * PAIR<T>)*Row::BYTES, a, b);
    };
    add_value_panel<T, R, PAIRS>(p, count, load, o + at, ld_o, coming);
    coming.count = 0;
  }
  for (; at + PAIR<T> <= dim; at += PAIR<T>) {
    const auto load = [&](int64_t j, int, V& a, V& b) {
      Row::load_pair(values[j] + at * Row::BYTES, a, b);
    };
    add_value_panel<T, R, 1>(p, count, load, o + at, ld_o, coming);
    coming.count = 0;
  }
  if (at < dim) {
    const auto load = [&](int64_t j, int, V& a, V& b) {
      load_tail<T, DTYPE>(values[j] + at * Row::BYTES, dim - at, a, b);
    };
    add_value_panel<T, R, 1>(p, count, load, o + at, ld_o, coming);
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
