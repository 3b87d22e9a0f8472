#pragma once

#include <cuda_runtime.h>

#include "fused_attention/status.h"

namespace fused_attention::cuda {

// What the runtime says, as a Status: "forward: invalid argument".
inline Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Status{};
  return Status::error("%s: %s", what, cudaGetErrorString(error));
}

}  // namespace fused_attention::cuda
