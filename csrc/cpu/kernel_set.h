#pragma once

#include "bias_gradient.h"
#include "decode.h"
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
      [](const DecodeParams& p) {
        return DecodeScratch<T>::elements(p) * static_cast<int64_t>(sizeof(T));
      },
      [](const DecodeParams& p) {
        return DecodePart<T>::elements(p) * static_cast<int64_t>(sizeof(T));
      },
      [](const DecodeParams& p, int64_t b, int64_t h_kv, void* scratch) {
        decode_append(p, b, h_kv, DecodeScratch<T>(p, scratch).rotary());
      },
      decode_part<T>,
      decode_merge<T>,
  };
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
