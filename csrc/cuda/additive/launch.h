#pragma once

#include "fused_attention/additive_params.h"
#include "fused_attention/status.h"

// Additive attention for compute capability 8.0 and later: fp32, bf16 and fp16, any dims.
//
// Pointers are device pointers and `stream` is a cudaStream_t; nothing here waits for the device.
// `workspace` is device memory of as many bytes as the function before says.
namespace fused_attention::cuda::additive {

Status forward_workspace_bytes(const AdditiveParams& params, int64_t* bytes);

// Writes out and lse, all rows of them.
Status launch_forward(const AdditiveParams& params, void* workspace, void* stream);

Status backward_workspace_bytes(const AdditiveBackwardParams& params, int64_t* bytes);

// Writes grad_query and grad_v, or neither where grad_query has no data; grad_key and grad_value,
// or neither. Every sum is taken in a fixed order, so results repeat bit by bit.
Status launch_backward(const AdditiveBackwardParams& params, void* workspace, void* stream);

}  // namespace fused_attention::cuda::additive
