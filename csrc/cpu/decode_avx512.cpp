// Decoding for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx512
#define FUSED_ATTENTION_VEC_AVX512
#include "decode.h"

namespace fused_attention::cpu {

const DecodeKernels decode_avx512 = {
    "avx512",
    [] {
      return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
    },
    avx512::decode_kernel_set<float>(),
    avx512::decode_kernel_set<double>(),
};

}  // namespace fused_attention::cpu
