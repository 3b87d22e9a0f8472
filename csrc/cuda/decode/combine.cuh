#pragma once

#include "../common/online_softmax.cuh"
#include "arguments.h"
#include "config.h"
#include "kernels.h"

// Parts of one row's keys become its result: a warp for each row. With the parts' normalised sums
// O_s and lse_s,
//
//   out = sum_s 2^(lse_s - lse) O_s,   lse = log2(sum_s 2^lse_s + 2^sink)
//
// always in the order of the keys, so that results repeat. A part without visible keys has lse -inf
// and no sum.
namespace fused_attention::cuda::decode {

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, distance));
  }
  return x;
}

// Where row `r` of [batch, heads_q, len_q] lies.
struct RowPlace {
  int64_t batch, head, query;

  __device__ RowPlace(const AttentionParams& problem, int64_t r)
      : batch(r / problem.len_q / problem.heads_q),
        head(r / problem.len_q % problem.heads_q),
        query(r % problem.len_q) {}
  __device__ int64_t offset(const Operand& x) const {
    return batch * x.batch + head * x.head + query * x.row;
  }
  __device__ int64_t offset(const RowVector& x) const {
    return batch * x.batch + head * x.head + query * x.row;
  }
};

template <class Element>
__global__ void __launch_bounds__(COMBINE_WARPS * 32)
    combine_kernel(const __grid_constant__ Arguments args) {
  const AttentionParams& problem = args.step.attention;
  const int lane = threadIdx.x % 32;
  const int64_t rows = problem.batch * problem.heads_q * problem.len_q;
  const int64_t r = int64_t{blockIdx.x} * COMBINE_WARPS + threadIdx.x / 32;
  if (r >= rows) return;
  const RowPlace place(problem, r);

  float top = -INFINITY;
  for (int s = lane; s < args.splits; s += 32) top = fmaxf(top, args.part_lse[s * rows + r]);
  top = warp_max(top);
  float sink = -INFINITY;
  if (problem.sinks != nullptr) {
    sink = static_cast<const float*>(problem.sinks)[place.head] * LOG2_E;
  }
  top = fmaxf(top, sink);
  const float shift = top == -INFINITY ? 0.0f : top;

  // Four dims at 4 lane, and four at 128 + 4 lane.
  float sums[2][4] = {};
  float total = 0.0f;
  for (int s = 0; s < args.splits; ++s) {
    const float lse = args.part_lse[s * rows + r];
    if (lse == -INFINITY) continue;
    const float weight = exp2f(lse - shift);
    total += weight;
    const float* part = args.part_sums + (s * rows + r) * args.sum_width;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int d = i * 128 + lane * 4;
      if (d >= args.sum_width) continue;
      const float4 x = *reinterpret_cast<const float4*>(part + d);
      sums[i][0] = fmaf(weight, x.x, sums[i][0]);
      sums[i][1] = fmaf(weight, x.y, sums[i][1]);
      sums[i][2] = fmaf(weight, x.z, sums[i][2]);
      sums[i][3] = fmaf(weight, x.w, sums[i][3]);
    }
  }
  total += exp2f(sink - shift);

  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  uint16_t* out = static_cast<uint16_t*>(problem.out.data) + place.offset(problem.out);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int d = i * 128 + lane * 4 + e;
      if (d < problem.value_dim) {
        out[d] = static_cast<uint16_t>(pack<Element>(sums[i][e] * inverse, 0.0f));
      }
    }
  }
  if (lane == 0) {
    float* lse = static_cast<float*>(problem.lse.data) + place.offset(problem.lse);
    *lse = total == 0.0f ? -INFINITY : (shift + log2f(total)) / LOG2_E;
  }
}

template <class Element>
const void* combine_kernel_address() {
  return reinterpret_cast<const void*>(&combine_kernel<Element>);
}

}  // namespace fused_attention::cuda::decode
