#pragma once

#include "fused_attention/params.h"
#include "fused_attention/status.h"

// Attention by mma.sync for compute capability 8.0 and later, fp16 and bf16, dims up to 256.
//
// Pointers are device pointers and `stream` is a cudaStream_t; nothing here waits for the device.
// Therefore cu_seqlens, kv_lengths and band_offsets are not looked at by the host: len_q and len_k
// must be given, for packed tensors as bounds of the longest sequence (max_seqlen_q, max_seqlen_k;
// total_q and total_k are bounds too, at the cost of thread blocks that find nothing to do).
namespace fused_attention::cuda::sm80 {

// Writes out and lse, all rows of them.
Status launch_forward(const AttentionParams& params, void* stream);

// Writes delta, grad_query, grad_key and grad_value, all rows of them; every sum is taken in a
// fixed order, so results repeat bit by bit. Needs no accumulators: key_sum and value_sum are not
// used.
Status launch_backward(const BackwardParams& params, void* stream);

}  // namespace fused_attention::cuda::sm80
