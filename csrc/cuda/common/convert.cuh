#pragma once

#include "element.h"
#include "ptx.cuh"

namespace fused_attention::cuda {

// Two floats rounded to the storage type, `low` at the lower address.
template <class Element>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (Element::DTYPE == DType::BFLOAT16) {
    return ptx::pack_bf16(low, high);
  } else {
    return ptx::pack_fp16(low, high);
  }
}

template <class Element>
__device__ __forceinline__ float to_float(uint16_t bits) {
  if constexpr (Element::DTYPE == DType::BFLOAT16) {
    return __uint_as_float(uint32_t{bits} << 16);
  } else {
    return ptx::fp16_to_float(bits);
  }
}

}  // namespace fused_attention::cuda
