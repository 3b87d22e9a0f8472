#pragma once

// The kernels that instantiations/*.cu compile, one file per element type, as what launch.cu can
// launch.
namespace fused_attention::cuda::decode {

template <class Element>
const void* append_kernel_address();

template <class Element, int DIM>
const void* decode_kernel_address();

template <class Element>
const void* combine_kernel_address();

}  // namespace fused_attention::cuda::decode
