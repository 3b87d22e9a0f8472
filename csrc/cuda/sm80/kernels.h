#pragma once

// The kernels that instantiations/*.cu compile, one file per dim, as what launch.cu can launch.
namespace fused_attention::cuda::sm80 {

template <class Element, int DIM>
const void* forward_kernel_address();

// delta
template <class Element>
const void* delta_kernel_address();

// dQ
template <class Element, int DIM>
const void* query_gradient_kernel_address();

// dK and dV
template <class Element, int DIM>
const void* key_gradient_kernel_address();

}  // namespace fused_attention::cuda::sm80
