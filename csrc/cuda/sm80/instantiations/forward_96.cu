#include "../forward.cuh"

namespace fused_attention::cuda::sm80 {
template const void* forward_kernel_address<Bfloat16, 96>();
template const void* forward_kernel_address<Float16, 96>();
}  // namespace fused_attention::cuda::sm80
