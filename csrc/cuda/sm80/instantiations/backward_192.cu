#include "../backward_key.cuh"
#include "../backward_query.cuh"

namespace fused_attention::cuda::sm80 {
template const void* query_gradient_kernel_address<Bfloat16, 192>();
template const void* query_gradient_kernel_address<Float16, 192>();
template const void* key_gradient_kernel_address<Bfloat16, 192>();
template const void* key_gradient_kernel_address<Float16, 192>();
}  // namespace fused_attention::cuda::sm80
