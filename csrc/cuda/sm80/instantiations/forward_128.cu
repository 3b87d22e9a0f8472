#include "../forward.cuh"

namespace fused_attention::cuda::sm80 {
template const void* forward_kernel_address<Bfloat16, 128>();
template const void* forward_kernel_address<Float16, 128>();
}  // namespace fused_attention::cuda::sm80
