#pragma once

#include "fused_attention/launch.h"
#include "fused_attention/local_params.h"

namespace fused_attention::cpu {

// Local attention; isa as for launch_forward.
Status launch_local_forward(const LocalParams& params, const char* isa, const ThreadPool& pool);
Status launch_local_backward(const LocalBackwardParams& params, const char* isa,
                             const ThreadPool& pool);

}  // namespace fused_attention::cpu
