#pragma once

#include "bias_gradient.h"
#include "forward.h"

namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
constexpr KernelSet kernel_set() {
  return {
      [](const AttentionParams& p) {
        return ForwardScratch<T>::elements(p) * static_cast<int64_t>(sizeof(T));
      },
      [](const AttentionParams& p) {
        return (BackwardScratch<T>::elements(p) + BLOCK_KV * BLOCK_Q) *
               static_cast<int64_t>(sizeof(T));
      },
      forward_block<T>,
      backward_block<T>,
      finish_key_row<T>,
      bias_tiles,
      bias_gradient_tile<T>,
  };
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
