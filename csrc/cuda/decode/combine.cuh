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

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
  }
  return x;
}

// Where row `r` of [batch, heads_q, len_q] lies.
struct RowPlace {
  uint32_t batch, head, query;

  __device__ RowPlace(const AttentionParams& problem, uint32_t r) {
    const uint32_t len_q = static_cast<uint32_t>(problem.len_q);
    const uint32_t heads = static_cast<uint32_t>(problem.heads_q);
    query = r % len_q;
    head = r / len_q % heads;
    batch = r / len_q / heads;
  }
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
  const uint32_t r = blockIdx.x * COMBINE_WARPS + threadIdx.x / 32;
  if (r >= rows) return;
  const RowPlace place(problem, r);
  const float* part_lse = args.part_lse + r;
  const float* part_sums = args.part_sums + r * static_cast<int64_t>(args.sum_width) + lane * 4;

  float top = -INFINITY;
  for (int s = lane; s < args.splits; s += 32) top = fmaxf(top, part_lse[s * rows]);
  float sink = -INFINITY;
  if (problem.sinks != nullptr) {
    sink = static_cast<const float*>(problem.sinks)[place.head] * LOG2_E;
  }
  top = fmaxf(warp_max(top), sink);
  const float shift = top == -INFINITY ? 0.0f : top;

  // Each lane weighs one of 32 parts, then all lanes add these up: four dims at 4 lane, and four at
  // 128 + 4 lane. Parts wait for nothing of each other, so that many are under way.
  float sums[2][4] = {};
  float total = 0.0f;
  for (int first = 0; first < args.splits; first += 32) {
    const int s = first + lane;
    const float weight = s < args.splits ? exp2f(part_lse[s * rows] - shift) : 0.0f;
    total += weight;
    const int count = min(32, args.splits - first);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float w = __shfl_sync(0xFFFFFFFFu, weight, i);
      const float* part = part_sums + (first + i) * rows * args.sum_width;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Without weight there may be nothing to read.
        if (w == 0.0f || half * 128 + lane * 4 >= args.sum_width) continue;
        const float4 x = *reinterpret_cast<const float4*>(part + half * 128);
        sums[half][0] = fmaf(w, x.x, sums[half][0]);
        sums[half][1] = fmaf(w, x.y, sums[half][1]);
        sums[half][2] = fmaf(w, x.z, sums[half][2]);
        sums[half][3] = fmaf(w, x.w, sums[half][3]);
      }
    }
  }
  total = warp_sum(total) + exp2f(sink - shift);

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
