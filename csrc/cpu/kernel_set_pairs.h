#pragma once

#include "backward_pairs.h"
#include "bias_gradient.h"
#include "peak.h"

// The kernels of a tier that multiplies bf16 pairs. The gradient of the bias, a pass of its own,
// stays with fp32 products.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

constexpr KernelSet BF16_KERNELS = {
    ForwardScratchPairs::bytes,
    [](const AttentionParams& p) {
      return max_of(BackwardScratchPairs::bytes(p), bias_gradient_bytes<float>(p));
    },
    forward_block_pairs,
    backward_block_pairs,
    [](const BackwardParams& params, int64_t b, int64_t h, int64_t begin, int64_t end) {
      finish_key_rows<float>(params, b, h, begin, end, static_cast<float>(params.forward.scale));
    },
    bias_tiles,
    bias_gradient_tile<float>,
    multiply_pairs_in_registers,
};

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
