// bf16 by VDPBF16PS; setup.py compiles this file with the matching flags. fp32, fp16 and fp64 are
// the same instructions as in isa_avx512.cpp, and so the same kernels.
#define FUSED_ATTENTION_ISA avx512_bf16
#define FUSED_ATTENTION_VEC_AVX512
#include "kernels.h"
// The kernels, compiled by the flags and in the namespace of this instruction set.
#include "kernel_set_pairs.h"

namespace fused_attention::cpu {

static constexpr KernelSet avx512_bf16_bf16 = avx512_bf16::BF16_KERNELS;

const Kernels kernels_avx512_bf16 = {
    "avx512_bf16",
    [] { return bool(kernels_avx512.supported() && __builtin_cpu_supports("avx512bf16")); },
    avx512_bf16::BLOCK_Q,
    avx512_bf16::BLOCK_KV,
    &avx512_fp32,
    &avx512_fp64,
    &avx512_bf16_bf16,
};

}  // namespace fused_attention::cpu
