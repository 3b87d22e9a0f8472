#pragma once

#include "bias_gradient.h"
#include "forward.h"
#include "peak.h"

namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
constexpr KernelSet kernel_set() {
  return {
      [](const AttentionParams& p) {
        return ForwardScratch<T>::elements(p) * static_cast<int64_t>(sizeof(T));
      },
      [](const AttentionParams& p) { return bias_gradient_bytes<T>(p); },
      forward_block<T>,
      backward_block<T>,
      [](const BackwardParams& params, int64_t b, int64_t h, int64_t begin, int64_t end) {
        finish_key_rows<T>(params, b, h, begin, end, T(1));
      },
      bias_tiles,
      bias_gradient_tile<T>,
      multiply_in_registers<T>,
  };
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
