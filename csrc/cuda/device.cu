#include "cuda/device.h"

#include <cuda_runtime_api.h>

namespace fused_attention::cuda {

Status driver_status() {
  int driver = 0;
  const cudaError_t error = cudaDriverGetVersion(&driver);
  if (error != cudaSuccess) return Status::error("CUDA's driver: %s", cudaGetErrorString(error));
  if (driver == 0) return Status::error("no CUDA driver is installed");
  // Within a major version, newer minor versions of the toolkit run on older drivers.
  if (driver / 1000 < CUDART_VERSION / 1000) {
    return Status::error("the driver supports CUDA %d.%d, the library was built with %d.%d",
                         driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                         CUDART_VERSION % 1000 / 10);
  }
  return {};
}

}  // namespace fused_attention::cuda
