#pragma once

#include "vec.h"

// Register-blocked products. Every product of attention, forward and backward, has one operand
// whose scalars are broadcast (A) and one whose rows are read as vectors (B):
//
//   C[m][n] (+)= sum_k A(m, k) * B[k][n]       n runs over SIMD lanes
//
//   S^T  [keys][queries] =  K  Q^T     A = K rows           B = Q^T     lanes = queries
//   O    [queries][dims] += P  V       A = P^T by columns   B = V       lanes = dims
//   dP^T [keys][queries] =  V dO^T     A = V rows           B = dO^T    lanes = queries
//   dQ   [queries][dims] += dS K       A = dS^T by columns  B = K       lanes = dims
//   dV   [keys][dims]    += P^T dO     A = P^T rows         B = dO      lanes = dims
//   dK   [keys][dims]    += dS^T Q     A = dS^T rows        B = Q       lanes = dims
//
// With queries in the lanes the softmax runs down columns: maxima and sums are vertical. What grows
// over the steps has dims in the lanes, so that a block of few queries wastes none, and is written
// as it lies.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

enum class AOrder { ROWS, COLUMNS };  // A(m, k) = a[m * lda + k] or a[m + k * lda]

// MR x NR vectors of C stay in registers: 16 of 32 with AVX-512, 12 of 16 with AVX2 and SSE. Each
// step of k loads NR vectors and broadcasts MR scalars for MR * NR FMAs, which keeps two load
// ports below two FMA ports. C is added at the end, not accumulated into: sums over thousands of
// queries or keys then are sums of short sums, and rounding errors grow with the number of tiles.
#if defined(FUSED_ATTENTION_VEC_AVX512)
constexpr int MR = 8;
#else
constexpr int MR = 6;
#endif
constexpr int NR = 2;

template <class T, AOrder ORDER, int ROWS, int VECS, bool ACCUMULATE>
inline void micro_kernel(int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                         int64_t ldc) {
  using V = Vec<T>;
  V sum[ROWS][VECS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < VECS; ++n) {
      sum[m][n] = V::broadcast(T(0));
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    V row[VECS];
#pragma GCC unroll 2
    for (int n = 0; n < VECS; ++n) row[n] = V::load(b + k * ldb + n * V::WIDTH);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      const V scalar = V::broadcast(ORDER == AOrder::ROWS ? a[m * lda + k] : a[m + k * lda]);
#pragma GCC unroll 2
      for (int n = 0; n < VECS; ++n) sum[m][n] = V::fma(scalar, row[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < VECS; ++n) {
      T* at = c + m * ldc + n * V::WIDTH;
      (ACCUMULATE ? V::load(at) + sum[m][n] : sum[m][n]).store(at);
    }
  }
}

// All rows of one column panel: full register blocks, then 4, 2, 1 rows for the remainder.
template <class T, AOrder ORDER, int VECS, bool ACCUMULATE>
inline void gemm_panel(int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b,
                       int64_t ldb, T* c, int64_t ldc) {
  const int64_t a_step = ORDER == AOrder::ROWS ? lda : 1;
  int64_t m = 0;
  for (; m + MR <= rows; m += MR) {
    micro_kernel<T, ORDER, MR, VECS, ACCUMULATE>(depth, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                 ldc);
  }
  if (m + 4 <= rows) {
    micro_kernel<T, ORDER, 4, VECS, ACCUMULATE>(depth, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                ldc);
    m += 4;
  }
  if (m + 2 <= rows) {
    micro_kernel<T, ORDER, 2, VECS, ACCUMULATE>(depth, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                ldc);
    m += 2;
  }
  if (m < rows) {
    micro_kernel<T, ORDER, 1, VECS, ACCUMULATE>(depth, a + m * a_step, lda, b, ldb, c + m * ldc,
                                                ldc);
  }
}

// C is rows x (vecs * WIDTH); B and C rows are read and written in whole vectors.
template <class T, AOrder ORDER, bool ACCUMULATE>
inline void gemm(int64_t rows, int64_t vecs, int64_t depth, const T* a, int64_t lda, const T* b,
                 int64_t ldb, T* c, int64_t ldc) {
  constexpr int64_t WIDTH = Vec<T>::WIDTH;
  int64_t n = 0;
  for (; n + NR <= vecs; n += NR) {
    gemm_panel<T, ORDER, NR, ACCUMULATE>(rows, depth, a, lda, b + n * WIDTH, ldb, c + n * WIDTH,
                                         ldc);
  }
  if (n < vecs) {
    gemm_panel<T, ORDER, 1, ACCUMULATE>(rows, depth, a, lda, b + n * WIDTH, ldb, c + n * WIDTH,
                                        ldc);
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
