#pragma once

#include "config.h"
#include "kernels.h"
#include "rotary.cuh"

// New keys, rotated, and new values go to their rows of the caches: a thread block for each new row
// of each key head. A row beyond what fits is dropped.
namespace fused_attention::cuda::decode {

template <class Element>
__global__ void __launch_bounds__(APPEND_THREADS)
    append_kernel(const __grid_constant__ Arguments args) {
  const DecodeParams& step = args.step;
  const AttentionParams& problem = step.attention;
  const uint32_t len_new = static_cast<uint32_t>(step.len_new);
  const uint32_t heads = static_cast<uint32_t>(problem.heads_kv);
  const uint32_t n = blockIdx.x % len_new;
  const uint32_t head = blockIdx.x / len_new % heads;
  const uint32_t b = blockIdx.x / len_new / heads;

  const Cache cache(step, static_cast<int>(b));
  const int64_t position = int64_t{step.cache_lengths[b]} + n;
  if (position < 0 || position >= problem.len_k) return;
  const KeyPlace place = place_of(step, cache, static_cast<int>(position));

  const Operand& from_key = step.new_key;
  const Operand& from_value = step.new_value;
  const uint16_t* new_key = static_cast<const uint16_t*>(from_key.data) + b * from_key.batch +
                            head * from_key.head + n * from_key.row;
  const uint16_t* new_value = static_cast<const uint16_t*>(from_value.data) + b * from_value.batch +
                              head * from_value.head + n * from_value.row;
  uint16_t* key =
      static_cast<uint16_t*>(problem.key.data) + place.offset(problem.key, static_cast<int>(head));
  uint16_t* value = static_cast<uint16_t*>(problem.value.data) +
                    place.offset(problem.value, static_cast<int>(head));
  for (int d = threadIdx.x; d < problem.head_dim; d += APPEND_THREADS) {
    key[d] = rotated<Element>(step, new_key, d, position);
  }
  for (int d = threadIdx.x; d < problem.value_dim; d += APPEND_THREADS) value[d] = new_value[d];
}

template <class Element>
const void* append_kernel_address() {
  return reinterpret_cast<const void*>(&append_kernel<Element>);
}

}  // namespace fused_attention::cuda::decode
