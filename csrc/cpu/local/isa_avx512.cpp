// Local attention for one instruction set; setup.py compiles this file with the matching flags.
#define FUSED_ATTENTION_ISA avx512
#define FUSED_ATTENTION_VEC_AVX512
#include "cpu/local/kernel_set.h"

namespace fused_attention::cpu {

const LocalKernels local_avx512 = {
    avx512::local_kernel_set<float>(),
    avx512::local_kernel_set<double>(),
};

}  // namespace fused_attention::cpu
