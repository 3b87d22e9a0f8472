#pragma once

#include "backward.h"
#include "forward.h"
#include "kernels.h"

namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive {

template <class T>
constexpr AdditiveKernelSet kernel_set() {
  return {forward_bytes<T>, backward_bytes<T>, forward_block<T>, backward_block<T>,
          finish_key_row<T>};
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA::additive
