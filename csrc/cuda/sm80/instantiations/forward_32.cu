#include "../forward.cuh"

namespace fused_attention::cuda::sm80 {
template const void* forward_kernel_address<Bfloat16, 32>();
template const void* forward_kernel_address<Float16, 32>();
}  // namespace fused_attention::cuda::sm80
