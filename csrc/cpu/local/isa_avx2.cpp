// Local attention for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx2
#define FUSED_ATTENTION_VEC_AVX2
#include "cpu/local/kernel_set.h"

namespace fused_attention::cpu {

const LocalKernels local_avx2 = {
    avx2::local_kernel_set<float>(),
    avx2::local_kernel_set<double>(),
};

}  // namespace fused_attention::cpu
