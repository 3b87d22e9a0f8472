#pragma once

#include <cstdint>

#include "fused_attention/params.h"
#include "fused_attention/status.h"

// The CUDA kernels. Every pointer in the params is the device's, `stream` is a cudaStream_t, and
// nothing waits for the device: a launch returns when the work is in the stream.
namespace fused_attention::cuda {

// Why nothing can run here (no driver, or one that is too old); makes no context. ok: a device is
// there.
Status device_status();

// Scratch memory that one step of decoding needs, in bytes; the caller hands it in.
int64_t decode_workspace_bytes(const DecodeParams& params);
Status launch_decode(const DecodeParams& params, void* stream);

namespace sm80 {

Status launch_forward(const AttentionParams& params, void* stream);
Status launch_backward(const BackwardParams& params, void* stream);

}  // namespace sm80
}  // namespace fused_attention::cuda
