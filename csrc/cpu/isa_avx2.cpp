// The kernels for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx2
#define FUSED_ATTENTION_VEC_AVX2
#include "kernels.h"
// The kernels, compiled by the flags and in the namespace of this instruction set.
#include "kernel_set.h"

namespace fused_attention::cpu {

static constexpr KernelSet avx2_fp32 = avx2::kernel_set<float>();
static constexpr KernelSet avx2_fp64 = avx2::kernel_set<double>();

const Kernels kernels_avx2 = {
    "avx2",
    [] {
      return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("f16c"));
    },
    avx2::BLOCK_Q,
    avx2::BLOCK_KV,
    &avx2_fp32,
    &avx2_fp64,
    &avx2_fp32,
};

}  // namespace fused_attention::cpu
