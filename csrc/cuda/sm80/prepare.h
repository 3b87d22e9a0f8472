#pragma once

#include "../common/launch_plan.h"
#include "arguments.h"
#include "config.h"

// From a problem to what a launch needs: which kernel, its grid, its shared memory, its arguments.
// Plain C++, so that tests run these very steps and hand the arguments to an emulator.
namespace fused_attention::cuda::sm80 {

struct ForwardPlan {
  Status status;
  int dim = 0;  // of the tiles: an element of DIMS
  KernelLaunch forward;
  ForwardArguments arguments;
};

// The kernels in the order in which they have to run.
struct BackwardPlan {
  Status status;
  int dim = 0;
  KernelLaunch delta, query_gradient, key_gradient;
  BackwardArguments arguments;
};

ForwardPlan plan_forward(const AttentionParams& params);
BackwardPlan plan_backward(const BackwardParams& params);

}  // namespace fused_attention::cuda::sm80
