#pragma once

#include <cmath>

#include "ptx.cuh"

// Online softmax of the two rows (g and g + 8) that a thread holds of an m16 fragment of scores;
// see mask_fragment.cuh for the layout. The four threads of a quad hold one row together: maxima
// are combined at once, sums stay each thread's own until the end.
//
// -inf: a row that has seen no column yet has maximum -inf. Shifting by 0 instead keeps every
// exponent at 2^-inf = 0, so sums stay 0 and no NaN can arise.
namespace fused_attention::cuda {

struct SoftmaxRows {
  float max[2];  // in the units of the scores
  float sum[2];  // this thread's share
};

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

// S <- 2^((S - new maximum) * exponent_scale); maxima and sums go on. alpha: what everything that
// was summed before has to be multiplied by. Returns whether any row of the warp has alpha != 1.
template <int N>
__device__ __forceinline__ bool online_softmax_update(float (&S)[N][4], SoftmaxRows& rows,
                                                      float exponent_scale, float (&alpha)[2]) {
  bool moved = false;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = fmaxf(S[0][2 * half], S[0][2 * half + 1]);
#pragma unroll
    for (int n = 1; n < N; ++n) top = fmaxf(top, fmaxf(S[n][2 * half], S[n][2 * half + 1]));
    top = fmaxf(rows.max[half], quad_max(top));
    const float shift = (top == -INFINITY ? 0.0f : top) * exponent_scale;
    alpha[half] = ptx::exp2_approx(fmaf(rows.max[half], exponent_scale, -shift));
    moved |= top != rows.max[half];
    rows.max[half] = top;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        S[n][e] = ptx::exp2_approx(fmaf(S[n][e], exponent_scale, -shift));
        sum += S[n][e];
      }
    }
    rows.sum[half] = fmaf(rows.sum[half], alpha[half], sum);
  }
  return __any_sync(0xFFFFFFFFu, moved);
}

template <int N>
__device__ __forceinline__ void rescale_rows(float (&O)[N][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) O[n][e] *= factor[e / 2];
  }
}

}  // namespace fused_attention::cuda
