#pragma once

#include "../common/convert.cuh"
#include "cache.cuh"

// Rotary position embedding (Su et al., 2021, eq. 34): pairs of dims turn by an angle that grows
// with the position. Pairs are (2 n, 2 n + 1), or (n, n + rotary_dim / 2); dims beyond rotary_dim
// stay as they are.
namespace fused_attention::cuda::decode {

template <class Element>
__device__ inline float angle_part(const DecodeParams& step, const void* table, int64_t at) {
  if (step.rotary_dtype == DType::FLOAT32) return static_cast<const float*>(table)[at];
  return to_float<Element>(static_cast<const uint16_t*>(table)[at]);
}

// Dim `d` of the row `x` at `position`, in the storage type.
template <class Element>
__device__ inline uint16_t rotated(const DecodeParams& step, const uint16_t* x, int d,
                                   int64_t position) {
  const int dims = static_cast<int>(step.rotary_dim), half = dims / 2;
  if (d >= dims) return x[d];
  const bool first = step.rotary_interleaved ? d % 2 == 0 : d < half;
  const int pair = step.rotary_interleaved ? d / 2 : d % half;
  const int step_to_other = step.rotary_interleaved ? 1 : half;
  const float own = to_float<Element>(x[d]);
  const float other = to_float<Element>(x[first ? d + step_to_other : d - step_to_other]);
  const float cos = angle_part<Element>(step, step.rotary_cos, position * half + pair);
  const float sin = angle_part<Element>(step, step.rotary_sin, position * half + pair);
  const float turned = first ? own * cos - other * sin : own * cos + other * sin;
  return static_cast<uint16_t>(pack<Element>(turned, 0.0f));
}

// Eight dims of it; those beyond head_dim are 0.
template <class Element>
__device__ inline uint4 rotated_chunk(const DecodeParams& step, const uint16_t* x, int chunk,
                                      int64_t position) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int d = chunk * 8 + i;
    if (d < step.attention.head_dim) {
      words[i / 2] |= uint32_t{rotated<Element>(step, x, d, position)} << (i % 2 * 16);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace fused_attention::cuda::decode
