// Decoding for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA portable
#include "decode.h"

namespace fused_attention::cpu {

const DecodeKernels decode_portable = {
    "portable",
    [] { return true; },
    portable::decode_kernel_set<float>(),
    portable::decode_kernel_set<double>(),
};

}  // namespace fused_attention::cpu
