#include "../backward.cuh"
#include "../forward.cuh"

namespace fused_attention::cuda::additive {
template const void* forward_kernel_address<Bfloat16>();
template const void* delta_kernel_address<Bfloat16>();
template const void* query_gradient_kernel_address<Bfloat16>();
template const void* key_gradient_kernel_address<Bfloat16>();
}  // namespace fused_attention::cuda::additive
