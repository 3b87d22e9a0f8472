#include "launch.h"

#include "../common/check.h"
#include "kernels.h"
#include "prepare.h"

namespace fused_attention::cuda::additive {
namespace {

struct Kernels {
  const void *forward, *delta, *query_gradient, *key_gradient;
};

template <class Element>
Kernels kernels_of() {
  return {forward_kernel_address<Element>(), delta_kernel_address<Element>(),
          query_gradient_kernel_address<Element>(), key_gradient_kernel_address<Element>()};
}

Kernels kernels_of(DType dtype) {
  return dtype == DType::FLOAT32    ? kernels_of<Float32>()
         : dtype == DType::BFLOAT16 ? kernels_of<Bfloat16>()
                                    : kernels_of<Float16>();
}

template <class Arguments>
Status launch(const char* name, const void* kernel, const KernelLaunch& shape,
              const Arguments& arguments, void* stream) {
  if (shape.blocks == 0) return Status{};
  void* pointers[] = {const_cast<Arguments*>(&arguments)};
  return check(cudaLaunchKernel(kernel, dim3(shape.blocks), dim3(shape.threads), pointers,
                                shape.shared_bytes, static_cast<cudaStream_t>(stream)),
               name);
}

}  // namespace

Status forward_workspace_bytes(const AdditiveParams& params, int64_t* bytes) {
  const ForwardPlan plan = plan_forward(params, nullptr);
  *bytes = plan.workspace_bytes;
  return plan.status;
}

Status launch_forward(const AdditiveParams& params, void* workspace, void* stream) {
  const ForwardPlan plan = plan_forward(params, workspace);
  if (!plan.status.ok) return plan.status;
  return launch("additive forward", kernels_of(params.attention.dtype).forward, plan.forward,
                plan.arguments, stream);
}

Status backward_workspace_bytes(const AdditiveBackwardParams& params, int64_t* bytes) {
  const BackwardPlan plan = plan_backward(params, nullptr);
  *bytes = plan.workspace_bytes;
  return plan.status;
}

Status launch_backward(const AdditiveBackwardParams& params, void* workspace, void* stream) {
  const BackwardPlan plan = plan_backward(params, workspace);
  if (!plan.status.ok) return plan.status;
  const Kernels kernels = kernels_of(params.attention.forward.dtype);
  const BackwardArguments& args = plan.arguments;
  Status status = launch("additive delta", kernels.delta, plan.delta, args, stream);
  if (!status.ok) return status;
  status =
      launch("additive query gradient", kernels.query_gradient, plan.query_gradient, args, stream);
  if (!status.ok) return status;
  status =
      launch("additive v gradient", v_gradient_kernel_address(), plan.v_gradient, args, stream);
  if (!status.ok) return status;
  return launch("additive key gradient", kernels.key_gradient, plan.key_gradient, args, stream);
}

}  // namespace fused_attention::cuda::additive
