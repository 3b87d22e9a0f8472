#pragma once

#include <cstdint>
#include <initializer_list>

#include "element.h"
#include "fused_attention/params.h"
#include "fused_attention/status.h"

// What the planners of all rooms share: plain C++, without CUDA.
namespace fused_attention::cuda {

struct KernelLaunch {
  uint32_t blocks = 0;  // 0: nothing to do
  uint32_t threads = 0;
  uint32_t shared_bytes = 0;
};

// Positions are 32 bits in the kernels, and a band reaches 2^30 further.
constexpr int64_t MAX_LENGTH = int64_t{1} << 30;
constexpr int64_t MAX_DIM = 256;

inline long long printable(int64_t x) { return static_cast<long long>(x); }

inline int64_t widest_dim(const AttentionParams& p) {
  return p.head_dim > p.value_dim ? p.head_dim : p.value_dim;
}

inline Status check_lengths(std::initializer_list<int64_t> lengths) {
  for (const int64_t length : lengths) {
    if (length < 0 || length > MAX_LENGTH) {
      return Status::error("lengths go up to 2^30, got %lld", printable(length));
    }
  }
  return Status{};
}

// dtype, heads and dims, which are the same for attention and for decoding.
inline Status check_problem(const AttentionParams& p) {
  if (p.dtype != DType::BFLOAT16 && p.dtype != DType::FLOAT16) {
    return Status::error("these kernels take bf16 and fp16");
  }
  if (p.bias.data != nullptr) return Status::error("these kernels take no bias");
  if (p.heads_kv <= 0 || p.heads_q % p.heads_kv != 0) {
    return Status::error("%lld query heads do not divide into %lld key/value heads",
                         printable(p.heads_q), printable(p.heads_kv));
  }
  if (p.head_dim < 1 || p.value_dim < 1 || widest_dim(p) > MAX_DIM) {
    return Status::error("head and value dims go from 1 to 256, got %lld and %lld",
                         printable(p.head_dim), printable(p.value_dim));
  }
  return Status{};
}

// Whether every row begins at a multiple of 16 bytes, so that it can be copied 16 at a time.
inline bool rows_are_aligned(const Operand& x, int64_t batch, int64_t heads) {
  const auto aligned = [](int64_t elements) { return elements * ELEMENT_BYTES % 16 == 0; };
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (batch <= 1 || aligned(x.batch)) &&
         (heads <= 1 || aligned(x.head)) && aligned(x.row);
}

}  // namespace fused_attention::cuda
