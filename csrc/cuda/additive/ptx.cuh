#pragma once

#include "../common/ptx.cuh"

namespace fused_attention::cuda::ptx {

// 1 / x to 1 ulp; results below 2^-126 are 0.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fused_attention::cuda::ptx
