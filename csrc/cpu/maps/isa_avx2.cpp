// Maps for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx2
#define FUSED_ATTENTION_VEC_AVX2
#include "cpu/maps/maps.h"

namespace fused_attention::cpu {

static constexpr MapsKernelSet avx2_fp32 = avx2::maps_kernel_set<float>();
static constexpr MapsKernelSet avx2_fp64 = avx2::maps_kernel_set<double>();

const MapsKernels maps_avx2 = {avx2::BLOCK_Q, avx2::BLOCK_KV, &avx2_fp32, &avx2_fp64};

}  // namespace fused_attention::cpu
