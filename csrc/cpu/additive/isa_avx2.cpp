// Additive attention for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx2
#define FUSED_ATTENTION_VEC_AVX2
#include "kernel_set.h"

namespace fused_attention::cpu {

const AdditiveKernels additive_avx2 = {
    "avx2",
    [] {
      return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("f16c"));
    },
    avx2::BLOCK_Q,
    avx2::BLOCK_KV,
    avx2::additive::kernel_set<float>(),
    avx2::additive::kernel_set<double>(),
};

}  // namespace fused_attention::cpu
