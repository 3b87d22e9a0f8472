#include "../forward.cuh"

namespace fused_attention::cuda::sm80 {
template const void* forward_kernel_address<Bfloat16, 192>();
template const void* forward_kernel_address<Float16, 192>();
}  // namespace fused_attention::cuda::sm80
