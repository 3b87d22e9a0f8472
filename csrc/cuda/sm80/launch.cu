#include "launch.h"

#include <cuda_runtime.h>

#include "../common/check.h"
#include "kernels.h"
#include "prepare.h"

namespace fused_attention::cuda::sm80 {
namespace {

struct Kernels {
  const void* forward;
  const void* query_gradient;
  const void* key_gradient;
};

template <class Element, int DIM>
Kernels kernels_of() {
  return {forward_kernel_address<Element, DIM>(), query_gradient_kernel_address<Element, DIM>(),
          key_gradient_kernel_address<Element, DIM>()};
}

template <class Element>
Kernels kernels_of(int dim) {
  switch (dim) {
    case 32:
      return kernels_of<Element, 32>();
    case 64:
      return kernels_of<Element, 64>();
    case 96:
      return kernels_of<Element, 96>();
    case 128:
      return kernels_of<Element, 128>();
    case 192:
      return kernels_of<Element, 192>();
    default:
      return kernels_of<Element, 256>();
  }
}

Kernels kernels_of(DType dtype, int dim) {
  return dtype == DType::BFLOAT16 ? kernels_of<Bfloat16>(dim) : kernels_of<Float16>(dim);
}

const void* delta_kernel_of(DType dtype) {
  return dtype == DType::BFLOAT16 ? delta_kernel_address<Bfloat16>()
                                  : delta_kernel_address<Float16>();
}

// More than 48 KB of shared memory have to be asked for, once per kernel and device; asking again
// costs less than knowing whether it has been done.
template <class Arguments>
Status launch(const char* name, const void* kernel, const KernelLaunch& shape,
              const Arguments& arguments, void* stream) {
  if (shape.blocks == 0) return Status{};
  const int bytes = static_cast<int>(shape.shared_bytes);
  if (bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return check(error, name);
  }
  void* pointers[] = {const_cast<Arguments*>(&arguments)};
  return check(cudaLaunchKernel(kernel, dim3(shape.blocks), dim3(shape.threads), pointers,
                                shape.shared_bytes, static_cast<cudaStream_t>(stream)),
               name);
}

}  // namespace

Status launch_forward(const AttentionParams& params, void* stream) {
  const ForwardPlan plan = plan_forward(params);
  if (!plan.status.ok) return plan.status;
  return launch("attention forward", kernels_of(params.dtype, plan.dim).forward, plan.forward,
                plan.arguments, stream);
}

Status launch_backward(const BackwardParams& params, void* stream) {
  const BackwardPlan plan = plan_backward(params);
  if (!plan.status.ok) return plan.status;
  const DType dtype = params.forward.dtype;
  const Kernels kernels = kernels_of(dtype, plan.dim);
  Status status =
      launch("attention delta", delta_kernel_of(dtype), plan.delta, plan.arguments, stream);
  if (!status.ok) return status;
  status = launch("attention key gradient", kernels.key_gradient, plan.key_gradient, plan.arguments,
                  stream);
  if (!status.ok) return status;
  return launch("attention query gradient", kernels.query_gradient, plan.query_gradient,
                plan.arguments, stream);
}

}  // namespace fused_attention::cuda::sm80
