// Local attention for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA portable
#include "cpu/local/kernel_set.h"

namespace fused_attention::cpu {

const LocalKernels local_portable = {
    portable::local_kernel_set<float>(),
    portable::local_kernel_set<double>(),
};

}  // namespace fused_attention::cpu
