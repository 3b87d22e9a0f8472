#pragma once

#include "decode_rows.h"

// The two products of decode_rows.h on bf16 by VDPBF16PS, which multiplies pairs of neighbours and
// adds both to an fp32 sum: half the instructions, and K needs no conversion.
//
//   S = Q K^T   pairs of dims; Q stays bf16 as it came, and scale is applied to the sums
//   O += P V    pairs of keys: two rows of V are interleaved, P is rounded to bf16 (its sum is not)
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// Whether the rows of this dtype are multiplied here, and not by decode_rows.h.
template <class T>
constexpr bool bf16_products(DType dtype) {
#if defined(__AVX512BF16__)
  return sizeof(T) == sizeof(float) && dtype == DType::BFLOAT16;
#else
  (void)dtype;
  return false;
#endif
}

// Q too: not after a rotation, whose result is no bf16, and rounding it would cost lse's accuracy.
template <class T>
inline bool bf16_queries(const DecodeParams& p) {
  return bf16_products<T>(p.attention.dtype) && p.rotary_cos == nullptr;
}

#if defined(__AVX512BF16__)

// 32 elements of a row, or the last `count` of them and zeros.
inline __m512i load_bf16(const char* at) { return _mm512_loadu_si512(at); }
inline __m512i load_bf16(const char* at, int64_t count) {
  return _mm512_maskz_loadu_epi16(count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1, at);
}

inline __m512 add_pair_products(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// S of R rows and `count` keys; Q [R][ld_q] holds bf16 padded with zeros to 32. The last keys of S
// up to a multiple of 16 / R get the last key's score.
template <int R>
inline void dot_rows_pairs(const uint16_t* q, int64_t ld_q, const char* const* keys, int64_t count,
                           int64_t dim, float scale, float* s, ComingRows& coming) {
  using V = Vec<float>;
  constexpr int KEYS = 16 / R;
  const int64_t rows = coming.rows_for(R * KEYS * dim);
  for (int64_t j = 0; j < count; j += KEYS) {
    const char* k[KEYS];
    for (int i = 0; i < KEYS; ++i) k[i] = keys[min_of(j + i, count - 1)];
    coming.fetch(rows);
    V sums[16];
#pragma GCC unroll 16
    for (V& sum : sums) sum = V::broadcast(0.f);
    const auto add = [&](int64_t d, auto load) {
      __m512i row[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) row[r] = _mm512_loadu_si512(q + r * ld_q + d);
#pragma GCC unroll 16
      for (int i = 0; i < KEYS; ++i) {
        const __m512i key = load(k[i] + 2 * d);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          sums[r * KEYS + i].v = add_pair_products(sums[r * KEYS + i].v, row[r], key);
        }
      }
    };
    int64_t d = 0;
    for (; d + 32 <= dim; d += 32) add(d, [](const char* at) { return load_bf16(at); });
    if (d < dim) add(d, [&](const char* at) { return load_bf16(at, dim - d); });
    float found[16];
    (V::sum_each(sums) * V::broadcast(scale)).store(found);
    for (int r = 0; r < R; ++r) {
      std::memcpy(s + r * DECODE_KEYS + j, found + r * KEYS, KEYS * sizeof(float));
    }
  }
}

// P [rows][DECODE_KEYS] in place: fp32 becomes bf16 in the first half of each row, with a zero
// behind an odd count.
inline void round_weights(float* p, int64_t rows, int64_t count) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = p + r * DECODE_KEYS;
    if (count % 2 != 0) row[count] = 0.f;
    uint16_t rounded[DECODE_KEYS];
    for (int64_t j = 0; j < count; j += 16) Vec<float>::load(row + j).store_bf16(rounded + j);
    std::memcpy(row, rounded, sizeof(rounded));
  }
}

// O += P V in BLOCKS blocks of 32 dims from `at` on. Interleaving works inside 128 bits: of each 8
// elements the first 4 land in one vector and the last 4 in the other, see from_interleaved.
template <int R, int BLOCKS, class Load>
inline void add_value_block(const float* p, const char* const* values, int64_t count, int64_t at,
                            const Load& load, float* o, int64_t ld_o, ComingRows& coming) {
  const int64_t rows = coming.rows_for(R * 32 * BLOCKS * VALUES_PER_FETCH);
  __m512 sums[R][2 * BLOCKS];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < 2 * BLOCKS; ++n) sums[r][n] = _mm512_setzero_ps();
  }
  for (int64_t j = 0; j < count; j += 2) {
    const char* first = values[j] + 2 * at;
    const char* second = values[min_of(j + 1, count - 1)] + 2 * at;
    if (j % VALUES_PER_FETCH == 0) coming.fetch(rows);
    __m512i v[2 * BLOCKS];
#pragma GCC unroll 4
    for (int n = 0; n < BLOCKS; ++n) {
      const __m512i a = load(first + 64 * n), b = load(second + 64 * n);
      v[2 * n] = _mm512_unpacklo_epi16(a, b);
      v[2 * n + 1] = _mm512_unpackhi_epi16(a, b);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t weights;
      std::memcpy(&weights, p + r * DECODE_KEYS + j / 2, sizeof(weights));
      const __m512i pair = _mm512_set1_epi32(weights);
#pragma GCC unroll 8
      for (int n = 0; n < 2 * BLOCKS; ++n) {
        sums[r][n] = add_pair_products(sums[r][n], pair, v[n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < 2 * BLOCKS; ++n) {
      float* to = o + r * ld_o + at + 16 * n;
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[r][n]));
    }
  }
}

// O [R][ld_o] += P [R] V, all dims; P comes from round_weights.
template <int R>
inline void add_values_pairs(const float* p, const char* const* values, int64_t count, int64_t dim,
                             float* o, int64_t ld_o, ComingRows& coming) {
  constexpr int BLOCKS = R >= 8 ? 1 : R == 4 ? 2 : 4;
  const auto whole = [](const char* from) { return load_bf16(from); };
  int64_t at = 0;
  for (; at + 32 * BLOCKS <= dim; at += 32 * BLOCKS) {
    add_value_block<R, BLOCKS>(p, values, count, at, whole, o, ld_o, coming);
  }
  for (; at < dim; at += 32) {
    const auto part = [&](const char* from) { return load_bf16(from, dim - at); };
    add_value_block<R, 1>(p, values, count, at, part, o, ld_o, coming);
  }
}

// n elements (whole blocks of 32) of O in their natural order.
inline void from_interleaved(const float* src, int64_t n, float* dst) {
  for (int64_t d = 0; d < n; d += 32) {
    for (int64_t i = 0; i < 16; i += 4) {
      std::memcpy(dst + d + 2 * i, src + d + i, 4 * sizeof(float));
      std::memcpy(dst + d + 2 * i + 4, src + d + 16 + i, 4 * sizeof(float));
    }
  }
}

#endif

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
