#pragma once

// The kernels that instantiations/*.cu compile, one file per element type, as what launch.cu can
// launch.
namespace fused_attention::cuda::additive {

template <class Element>
const void* forward_kernel_address();

// delta
template <class Element>
const void* delta_kernel_address();

// Gradient of query, and parts of that of v.
template <class Element>
const void* query_gradient_kernel_address();

// Gradients of key and value.
template <class Element>
const void* key_gradient_kernel_address();

// The parts of v's gradient in a fixed order; no dtype but fp32.
const void* v_gradient_kernel_address();

}  // namespace fused_attention::cuda::additive
