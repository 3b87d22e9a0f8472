// Additive attention for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA portable
#include "kernel_set.h"

namespace fused_attention::cpu {

const AdditiveKernels additive_portable = {
    "portable",
    [] { return true; },
    portable::BLOCK_Q,
    portable::BLOCK_KV,
    portable::additive::kernel_set<float>(),
    portable::additive::kernel_set<double>(),
};

}  // namespace fused_attention::cpu
