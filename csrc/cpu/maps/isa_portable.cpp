// Maps for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA portable
#include "cpu/maps/maps.h"

namespace fused_attention::cpu {

static constexpr MapsKernelSet portable_fp32 = portable::maps_kernel_set<float>();
static constexpr MapsKernelSet portable_fp64 = portable::maps_kernel_set<double>();

const MapsKernels maps_portable = {portable::BLOCK_Q, portable::BLOCK_KV, &portable_fp32,
                                   &portable_fp64};

}  // namespace fused_attention::cpu
