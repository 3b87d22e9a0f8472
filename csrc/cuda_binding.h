#pragma once

// What the bindings of the CUDA library share: torch's current stream, and scratch memory.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "binding.h"

// Only torch's CUDA library has it, and a torch for CPUs must find nothing missing: hence weak.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace fused_attention::binding {

using torch::stable::accelerator::DeviceGuard;

inline void* current_stream(const Tensor& x) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "fused_attention: this torch is built without CUDA");
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

// On the device of `x`, and its memory stays in use until the current stream has passed.
inline Tensor workspace_of(const Tensor& x, int64_t bytes) {
  return torch::stable::new_empty(x, {bytes}, torch::headeronly::ScalarType::Byte);
}

}  // namespace fused_attention::binding
