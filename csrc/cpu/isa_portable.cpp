// The kernels for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA portable
#include "kernels.h"
// The kernels, compiled by the flags and in the namespace of this instruction set.
#include "kernel_set.h"

namespace fused_attention::cpu {

static constexpr KernelSet portable_fp32 = portable::kernel_set<float>();
static constexpr KernelSet portable_fp64 = portable::kernel_set<double>();

const Kernels kernels_portable = {
    "portable",     [] { return true; }, portable::BLOCK_Q, portable::BLOCK_KV,
    &portable_fp32, &portable_fp64,      &portable_fp32,
};

}  // namespace fused_attention::cpu
