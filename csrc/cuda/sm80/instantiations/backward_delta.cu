#include "../backward_delta.cuh"

namespace fused_attention::cuda::sm80 {
template const void* delta_kernel_address<Bfloat16>();
template const void* delta_kernel_address<Float16>();
}  // namespace fused_attention::cuda::sm80
