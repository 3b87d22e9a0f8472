#pragma once

#include "gemm.h"
#include "pairs.h"

// The six products of gemm.h on bf16 pairs by VDPBF16PS: twice the multiplications per instruction,
// half the bytes per operand. Sums are fp32; the instruction takes subnormal numbers as 0.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// A(m, pair k) = a[m * lda + 2k .. + 1] (ROWS) or a[2m + k * lda .. + 1] (COLUMNS: zipped rows).
template <AOrder ORDER, int ROWS, int VECS, bool ACCUMULATE>
inline void micro_kernel_pairs(int64_t pairs, const bf16_t* a, int64_t lda, const bf16_t* b,
                               int64_t ldb, float* c, int64_t ldc) {
  __m512 sum[ROWS][VECS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < VECS; ++n) sum[m][n] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh row[VECS];
#pragma GCC unroll 2
    for (int n = 0; n < VECS; ++n) row[n] = (__m512bh)_mm512_loadu_si512(b + k * ldb + n * 32);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, ORDER == AOrder::ROWS ? a + m * lda + 2 * k : a + 2 * m + k * lda,
                       sizeof(pair));
      const __m512bh scalars = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int n = 0; n < VECS; ++n) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], scalars, row[n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < VECS; ++n) {
      float* at = c + m * ldc + n * 16;
      _mm512_storeu_ps(at, ACCUMULATE ? _mm512_add_ps(_mm512_loadu_ps(at), sum[m][n]) : sum[m][n]);
    }
  }
}

template <AOrder ORDER, int VECS, bool ACCUMULATE>
inline void gemm_pairs_panel(int64_t rows, int64_t pairs, const bf16_t* a, int64_t lda,
                             const bf16_t* b, int64_t ldb, float* c, int64_t ldc) {
  const int64_t a_step = ORDER == AOrder::ROWS ? lda : 2;
  int64_t m = 0;
  for (; m + 8 <= rows; m += 8) {
    micro_kernel_pairs<ORDER, 8, VECS, ACCUMULATE>(pairs, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                   ldc);
  }
  if (m + 4 <= rows) {
    micro_kernel_pairs<ORDER, 4, VECS, ACCUMULATE>(pairs, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                   ldc);
    m += 4;
  }
  if (m + 2 <= rows) {
    micro_kernel_pairs<ORDER, 2, VECS, ACCUMULATE>(pairs, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                   ldc);
    m += 2;
  }
  if (m < rows) {
    micro_kernel_pairs<ORDER, 1, VECS, ACCUMULATE>(pairs, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                   ldc);
  }
}

// C is rows x (vecs * 16) floats. ldb counts bf16 values: twice the pairs of a row.
template <AOrder ORDER, bool ACCUMULATE>
inline void gemm_pairs(int64_t rows, int64_t vecs, int64_t pairs, const bf16_t* a, int64_t lda,
                       const bf16_t* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t n = 0;
  for (; n + 2 <= vecs; n += 2) {
    gemm_pairs_panel<ORDER, 2, ACCUMULATE>(rows, pairs, a, lda, b + n * 32, ldb, c + n * 16, ldc);
  }
  if (n < vecs) {
    gemm_pairs_panel<ORDER, 1, ACCUMULATE>(rows, pairs, a, lda, b + n * 32, ldb, c + n * 16, ldc);
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
