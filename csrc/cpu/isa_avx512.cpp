// The kernels for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx512
#define FUSED_ATTENTION_VEC_AVX512
#include "kernels.h"
// The kernels, compiled by the flags and in the namespace of this instruction set.
#include "kernel_set.h"

namespace fused_attention::cpu {

const KernelSet avx512_fp32 = avx512::kernel_set<float>();
const KernelSet avx512_fp64 = avx512::kernel_set<double>();

const Kernels kernels_avx512 = {
    "avx512",
    [] {
      return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
    },
    avx512::BLOCK_Q,
    avx512::BLOCK_KV,
    &avx512_fp32,
    &avx512_fp64,
    &avx512_fp32,
};

}  // namespace fused_attention::cpu
