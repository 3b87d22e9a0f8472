#pragma once

#include "../common/online_softmax.cuh"
#include "arguments.h"
#include "config.h"
#include "kernels.h"
#include "scores.cuh"
#include "tiles.cuh"

// Backward; P is recomputed from the saved lse.
//
//   delta = rowsum(dO * O) - dlse                         delta_kernel
//   S  = Q K^T, P = e^(score - lse), dP = dO V^T
//   dS = P * (dP - delta)                                 times the softcap's slope
//   dQ = scale * dS K                                     query_gradient_kernel: rows are queries
//   dV = P^T dO,  dK = scale * dS^T Q                     key_gradient_kernel: rows are keys
//
// Two kernels compute S and dP twice, and need neither atomics nor an order between thread blocks:
// every sum is one thread's, in a fixed order. Dropout (Z = 0 or 1 / keep): dP * Z and P * Z.
//
// -inf: a query that sees no key has lse = -inf. It is replaced by +inf, so that P = 2^-inf = 0,
// its delta is 0, and its dO, which may be NaN (the derivative of logaddexp at -inf is), is kept
// out.
namespace fused_attention::cuda::sm80 {

// Finished scores become weights.
template <int M, int N, class Lse>
__device__ __forceinline__ void weights_of(float (&S)[M][N][4], const ScoreBlock& block, int row,
                                           int column, int begin, const Lse& lse) {
  mask_scores(S, block, row, column, begin);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const auto of = lse(n);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        S[m][n][e] = ptx::exp2_approx(fmaf(S[m][n][e], block.terms.exponent_scale, -of(m, e)));
      }
    }
  }
}

// S (q . k) becomes P; dP becomes dS up to the scale. lse(n)(m, e), in base 2, and delta(n)(m, e)
// are those of the query of an element. `row` and `column`: of the thread's first element; `begin`:
// of the step's columns.
template <int M, int N, class Lse, class Delta>
__device__ __forceinline__ void score_gradients(float (&S)[M][N][4], float (&dP)[M][N][4],
                                                const ScoreBlock& block, int row, int column,
                                                int begin, const Lse& lse, const Delta& delta) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const auto of = delta(n);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dP[m][n][e] -= of(m, e);
    }
  }
  change_scores(S, block, row, column, dP);
  weights_of(S, block, row, column, begin, lse);
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dP[m][n][e] *= S[m][n][e];
    }
  }
}

// x * factor where the bit is set, else 0.
template <int M, int N>
__device__ __forceinline__ void apply_dropout(float (&x)[M][N][4], const uint32_t (&kept)[M],
                                              float factor) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[m][n][e] = (kept[m] >> (n * 4 + e) & 1) != 0 ? x[m][n][e] * factor : 0.0f;
      }
    }
  }
}

// lse in base 2, for the exponent; +inf for a query that sees nothing.
__device__ __forceinline__ float exponent_of_lse(float lse) {
  return lse == -INFINITY ? INFINITY : lse * LOG2_E;
}

template <int M, int N>
__device__ __forceinline__ void scale_rows(float (&acc)[M][N][4], float factor) {
  const float both[2] = {factor, factor};
#pragma unroll
  for (int m = 0; m < M; ++m) rescale_rows(acc[m], both);
}

}  // namespace fused_attention::cuda::sm80
