#include "../append.cuh"
#include "../combine.cuh"
#include "../decode.cuh"

namespace fused_attention::cuda::decode {
template const void* append_kernel_address<Bfloat16>();
template const void* decode_kernel_address<Bfloat16, 64>();
template const void* decode_kernel_address<Bfloat16, 128>();
template const void* decode_kernel_address<Bfloat16, 256>();
template const void* combine_kernel_address<Bfloat16>();
}  // namespace fused_attention::cuda::decode
