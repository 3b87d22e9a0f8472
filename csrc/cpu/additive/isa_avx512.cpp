// Additive attention for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx512
#define FUSED_ATTENTION_VEC_AVX512
#include "kernel_set.h"

namespace fused_attention::cpu {

const AdditiveKernels additive_avx512 = {
    "avx512",
    [] {
      return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
    },
    avx512::BLOCK_Q,
    avx512::BLOCK_KV,
    avx512::additive::kernel_set<float>(),
    avx512::additive::kernel_set<double>(),
};

}  // namespace fused_attention::cpu
