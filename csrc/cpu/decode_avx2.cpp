// Decoding for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx2
#define FUSED_ATTENTION_VEC_AVX2
#include "decode.h"

namespace fused_attention::cpu {

const DecodeKernels decode_avx2 = {
    "avx2",
    [] {
      return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("f16c"));
    },
    avx2::decode_kernel_set<float>(),
    avx2::decode_kernel_set<double>(),
};

}  // namespace fused_attention::cpu
