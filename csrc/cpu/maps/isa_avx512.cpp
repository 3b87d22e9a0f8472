// Maps for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx512
#define FUSED_ATTENTION_VEC_AVX512
#include "cpu/maps/maps.h"

namespace fused_attention::cpu {

static constexpr MapsKernelSet avx512_fp32 = avx512::maps_kernel_set<float>();
static constexpr MapsKernelSet avx512_fp64 = avx512::maps_kernel_set<double>();

const MapsKernels maps_avx512 = {avx512::BLOCK_Q, avx512::BLOCK_KV, &avx512_fp32, &avx512_fp64};

}  // namespace fused_attention::cpu
