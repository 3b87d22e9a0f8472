#include "../forward.cuh"

namespace fused_attention::cuda::sm80 {
template const void* forward_kernel_address<Bfloat16, 256>();
template const void* forward_kernel_address<Float16, 256>();
}  // namespace fused_attention::cuda::sm80
