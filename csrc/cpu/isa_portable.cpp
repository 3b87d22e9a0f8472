// The kernels for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA portable
#include "kernels.h"
// The kernels, compiled by the flags and in the namespace of this instruction set.
#include "kernel_set.h"

namespace fused_attention::cpu {

const Kernels kernels_portable = {
    "portable",         [] { return true; },           portable::BLOCK_Q,
    portable::BLOCK_KV, portable::kernel_set<float>(), portable::kernel_set<double>(),
};

}  // namespace fused_attention::cpu
