#include "../forward.cuh"

namespace fused_attention::cuda::sm80 {
template const void* forward_kernel_address<Bfloat16, 64>();
template const void* forward_kernel_address<Float16, 64>();
}  // namespace fused_attention::cuda::sm80
