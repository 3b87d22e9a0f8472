#pragma once

#include "tiles.h"

// bf16 operands of products that multiply two neighbours of the reduction at once (VDPBF16PS, AMX):
//
//   C[m][n] (+)= sum_k A(m, 2k) * B(2k, n) + A(m, 2k + 1) * B(2k + 1, n)
//
// A is read as pairs: from rows that lie as in the tensor (reduction along the row), or from zipped
// rows (reduction down the rows). B is always zipped, [k / 2][n][2]. An odd end of the reduction
// is paired with zeros on both sides, because 0 * NaN would not be 0.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

using bf16_t = uint16_t;

struct RowsBf16 {
  const bf16_t* data;
  int64_t ld;
};

inline const bf16_t* bf16_row(const Operand& x, int64_t b, int64_t h, int64_t row) {
  return static_cast<const bf16_t*>(x.data) + b * x.batch + h * x.head + row * x.row;
}

inline __mmask32 first_lanes(int64_t n) {
  return n >= 32 ? 0xFFFFFFFFu : n <= 0 ? 0u : (1u << n) - 1;
}

// Pairs of rows: words 0, 32, 1, 33, .. of (low, high), then the upper halves.
inline __m512i zip_low(__m512i low, __m512i high) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(low, order, high);
}
inline __m512i zip_high(__m512i low, __m512i high) {
  const __m512i order =
      _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23, 54,
                       22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
  return _mm512_permutex2var_epi16(low, order, high);
}

// Two vectors of floats, rounded to bf16, as pairs (low[i], high[i]); `rows` holds them one after
// the other. Subnormal numbers become 0, as in the products.
struct PackedPairs {
  __m512i rows, pairs;
};
inline PackedPairs pack_pairs(Vec<float> low, Vec<float> high) {
  const __m512i rows = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return {rows, _mm512_permutexvar_epi16(order, rows)};
}

// sum x[i] * y[i] over n values in fp32, lane by lane.
inline float dot_bf16(const bf16_t* x, const bf16_t* y, int64_t n) {
  using V = Vec<float>;
  const __m512i upper = _mm512_set1_epi32(int32_t(0xFFFF0000));
  V even = V::broadcast(0.f), odd = even;
  for (int64_t i = 0; i < n; i += 32) {
    const __mmask32 mask = first_lanes(n - i);
    const __m512i a = _mm512_maskz_loadu_epi16(mask, x + i);
    const __m512i b = _mm512_maskz_loadu_epi16(mask, y + i);
    even = V::fma(V{(__m512)_mm512_slli_epi32(a, 16)}, V{(__m512)_mm512_slli_epi32(b, 16)}, even);
    odd = V::fma(V{(__m512)_mm512_and_si512(a, upper)}, V{(__m512)_mm512_and_si512(b, upper)}, odd);
  }
  return (even + odd).sum_lanes();
}

// n rows of dim values, zeros up to whole vectors, round_up(dim, 32) apart.
inline void copy_rows_bf16(const Operand& x, int64_t b, int64_t h, int64_t row, int64_t n,
                           int64_t dim, bf16_t* buffer) {
  const bf16_t* src = bf16_row(x, b, h, row);
  const int64_t ld = round_up(dim, 2 * ROW_ALIGN);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t d = 0; d < ld; d += 32) {
      _mm512_storeu_si512(buffer + i * ld + d,
                          _mm512_maskz_loadu_epi16(first_lanes(dim - d), src + i * x.row + d));
    }
  }
}

// The rows, in place where they lie densely, else copied (see load_rows).
inline RowsBf16 load_rows_bf16(const Operand& x, int64_t b, int64_t h, int64_t row, int64_t n,
                               int64_t dim, bf16_t* buffer) {
  if (x.row == dim && dim % 2 == 0 && dim % 512 != 0) return {bf16_row(x, b, h, row), dim};
  copy_rows_bf16(x, b, h, row, n, dim, buffer);
  return {buffer, round_up(dim, 2 * ROW_ALIGN)};
}

// dst[i / 2][d][2] from n rows; dst's rows hold round_up(dim, ROW_ALIGN) pairs, zero beyond dim.
inline void zip_rows(const bf16_t* src, int64_t ld, int64_t n, int64_t dim, bf16_t* dst) {
  const int64_t width = round_up(dim, ROW_ALIGN);
  for (int64_t i = 0; i < n; i += 2) {
    const bf16_t *even = src + i * ld, *odd = even + ld;
    bf16_t* out = dst + i * width;
    for (int64_t d = 0; d < width; d += 32) {
      const __mmask32 mask = first_lanes(dim - d);
      const __m512i low = _mm512_maskz_loadu_epi16(mask, even + d);
      const __m512i high = _mm512_maskz_loadu_epi16(i + 1 < n ? mask : 0, odd + d);
      _mm512_storeu_si512(out + 2 * d, zip_low(low, high));
      if (d + 16 < width) _mm512_storeu_si512(out + 2 * d + 32, zip_high(low, high));
    }
  }
}

// Queries as lanes: dst[d / 2][q][2] from `rows` rows; a lane beyond them is 0. `flip` changes all
// signs (a negative scale).
inline void zip_lanes(const bf16_t* src, int64_t ld, int64_t rows, int64_t dim, bool flip,
                      bf16_t* dst) {
  const __m512i signs = _mm512_set1_epi16(flip ? int16_t(0x8000) : 0);
  const int64_t lanes = vectors<float>(rows) * Vec<float>::WIDTH;
  alignas(64) bf16_t square[16 * 32];
  for (int64_t q = 0; q < lanes; q += 16) {
    for (int64_t d = 0; d < dim; d += 32) {
      for (int64_t i = 0; i < 16; ++i) {
        const __mmask32 mask = q + i < rows ? first_lanes(dim - d) : 0;
        const __m512i row = _mm512_maskz_loadu_epi16(mask, src + (q + i) * ld + d);
        _mm512_store_si512(square + i * 32, _mm512_maskz_mov_epi16(mask, row ^ signs));
      }
      float* out = reinterpret_cast<float*>(dst) + d / 2 * BLOCK_Q + q;
      transpose_block(reinterpret_cast<const float*>(square), 16, out, BLOCK_Q);
    }
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
