// Decoding for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx512_bf16
#define FUSED_ATTENTION_VEC_AVX512
#include "decode.h"

namespace fused_attention::cpu {

const DecodeKernels decode_avx512_bf16 = {
    "avx512_bf16",
    [] { return bool(decode_avx512.supported() && __builtin_cpu_supports("avx512bf16")); },
    avx512_bf16::decode_kernel_set<float>(),
    avx512_bf16::decode_kernel_set<double>(),
};

}  // namespace fused_attention::cpu
