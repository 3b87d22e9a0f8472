#include "../backward_key.cuh"
#include "../backward_query.cuh"

namespace fused_attention::cuda::sm80 {
template const void* query_gradient_kernel_address<Bfloat16, 256>();
template const void* query_gradient_kernel_address<Float16, 256>();
template const void* key_gradient_kernel_address<Bfloat16, 256>();
template const void* key_gradient_kernel_address<Float16, 256>();
}  // namespace fused_attention::cuda::sm80
