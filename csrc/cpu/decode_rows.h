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

// Rows of the cache that belong to one step: those of K, then those of V.
struct StepRows {
  const char* rows[2 * DECODE_KEYS];
  int64_t count = 0;  // of each

  const char* const* keys() const { return rows; }
  const char* const* values() const { return rows + count; }
};

// The next step's rows, which are asked of memory while this one is computed: a few with each piece
// of work, so that memory is never idle, during the softmax neither. The processor's own
// prefetching ends at each page and with each pause.
class ComingRows {
 public:
  ComingRows(const StepRows& step, int64_t key_bytes, int64_t value_bytes)
      : step_(step), bytes_{key_bytes, value_bytes} {}

  // From now on `share` of all rows come with `work`.
  void spread(float share, int64_t work) {
    pace_ = share * static_cast<float>(2 * step_.count) / static_cast<float>(work);
  }

  // How many come with a piece of it, rounded up: a number that varied would cost mispredictions.
  int64_t rows_for(int64_t work) const {
    return static_cast<int64_t>(pace_ * static_cast<float>(work) + 0.99f);
  }

  void fetch(int64_t rows) {
    const int64_t end = min_of(next_ + rows, 2 * step_.count);
    for (; next_ < end; ++next_) {
      const char* row = step_.rows[next_];
      const int64_t bytes = bytes_[next_ >= step_.count];
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);  // into L2
    }
  }

 private:
  const StepRows& step_;
  const int64_t bytes_[2];
  int64_t next_ = 0;
  float pace_ = 0.f;
};

constexpr int64_t VALUES_PER_FETCH = 8;  // rows of V, in each panel

struct NothingComing {
  int64_t rows_for(int64_t) const { return 0; }
  void fetch(int64_t) {}
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
template <class T, DType DTYPE, int R, class Coming>
inline void dot_rows(const T* q, int64_t ld_q, const char* const* keys, int64_t count, int64_t dim,
                     T* s, Coming& coming) {
  using V = Vec<T>;
  using Row = CacheRow<T, DTYPE>;
  constexpr int KEYS = V::WIDTH / R;
  const int64_t whole = dim / PAIR<T> * PAIR<T>, rows = coming.rows_for(R * KEYS * dim);
  for (int64_t j = 0; j < count; j += KEYS) {
    const char* k[KEYS];
    for (int i = 0; i < KEYS; ++i) k[i] = keys[min_of(j + i, count - 1)];
    coming.fetch(rows);
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
template <class T, int R, int PAIRS, class Load, class Coming>
inline void add_value_panel(const T* p, int64_t count, const Load& load, T* o, int64_t ld_o,
                            Coming& coming) {
  using V = Vec<T>;
  const int64_t rows = coming.rows_for(R * PAIRS * PAIR<T> * VALUES_PER_FETCH);
  V sums[R][2 * PAIRS];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < 2 * PAIRS; ++n) sums[r][n] = V::broadcast(T(0));
  }
  for (int64_t j = 0; j < count; ++j) {
    if (j % VALUES_PER_FETCH == 0) coming.fetch(rows);
    V v[2 * PAIRS];
#pragma GCC unroll 4
    for (int n = 0; n < PAIRS; ++n) load(j, n, v[2 * n], v[2 * n + 1]);
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
template <class T, DType DTYPE, int R, class Coming>
inline void add_values(const T* p, const char* const* values, int64_t count, int64_t dim, T* o,
                       int64_t ld_o, Coming& coming) {
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
  }
  for (; at + PAIR<T> <= dim; at += PAIR<T>) {
    const auto load = [&](int64_t j, int, V& a, V& b) {
      Row::load_pair(values[j] + at * Row::BYTES, a, b);
    };
    add_value_panel<T, R, 1>(p, count, load, o + at, ld_o, coming);
  }
  if (at < dim) {
    const auto load = [&](int64_t j, int, V& a, V& b) {
      load_tail<T, DTYPE>(values[j] + at * Row::BYTES, dim - at, a, b);
    };
    add_value_panel<T, R, 1>(p, count, load, o + at, ld_o, coming);
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
