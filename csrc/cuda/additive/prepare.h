#pragma once

#include "../common/launch_plan.h"
#include "arguments.h"

// From a problem to what its launches need: grids, workspace, arguments. Plain C++, so that tests
// run these very steps and hand the arguments to an emulator. `workspace` is device memory of
// workspace_bytes; nullptr while its size is asked for.
namespace fused_attention::cuda::additive {

struct ForwardPlan {
  Status status;
  int64_t workspace_bytes = 0;
  KernelLaunch forward;
  ForwardArguments arguments;
};

// The kernels in the order in which they have to run.
struct BackwardPlan {
  Status status;
  int64_t workspace_bytes = 0;
  KernelLaunch delta, query_gradient, v_gradient, key_gradient;
  BackwardArguments arguments;
};

ForwardPlan plan_forward(const AdditiveParams& params, void* workspace);

BackwardPlan plan_backward(const AdditiveBackwardParams& params, void* workspace);

}  // namespace fused_attention::cuda::additive
