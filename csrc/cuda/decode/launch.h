#pragma once

#include <cstdint>

#include "fused_attention/params.h"
#include "fused_attention/status.h"

// Decoding by mma.sync for compute capability 8.0 and later, fp16 and bf16, dims up to 256.
//
// Pointers are device pointers and `stream` is a cudaStream_t; nothing here waits for the device,
// so lengths, starts and page numbers are not looked at by the host.
namespace fused_attention::cuda {

// Scratch memory of a launch on the current device, in bytes; the caller hands it in.
Status decode_workspace_bytes(const DecodeParams& params, int64_t* bytes);

// Appends the new keys and values to the caches, rotated, then writes out and lse, all rows of
// them.
Status launch_decode(const DecodeParams& params, void* stream);

}  // namespace fused_attention::cuda
