#pragma once

#include <cstdint>

#include "fused_attention/params.h"

// Storage types of the tensors as template arguments. A kernel moves their bits; what it computes
// with is fp32.
namespace fused_attention::cuda {

struct Bfloat16 {
  static constexpr DType DTYPE = DType::BFLOAT16;
};

struct Float16 {
  static constexpr DType DTYPE = DType::FLOAT16;
};

struct Float32 {
  static constexpr DType DTYPE = DType::FLOAT32;
};

constexpr int ELEMENT_BYTES = 2;

}  // namespace fused_attention::cuda
