#pragma once

#include <cstdint>

#include "../common/launch_plan.h"
#include "arguments.h"

// From a step of decoding to what its launches need: grids, shared memory, arguments. Plain C++, so
// that tests run these very steps and hand the arguments to an emulator.
namespace fused_attention::cuda::decode {

// The kernels in the order in which they have to run.
struct Plan {
  Status status;
  int dim = 0;  // of the tiles: an element of DIMS
  int64_t workspace_bytes = 0;
  KernelLaunch append, decode, combine;
  Arguments arguments;
};

// multiprocessors: of the device, by which the number of parts is chosen.
Plan plan(const DecodeParams& step, int multiprocessors);

}  // namespace fused_attention::cuda::decode
