#pragma once

#include "fused_attention/additive_params.h"
#include "fused_attention/launch.h"

namespace fused_attention::cpu {

// isa: as for launch_forward; a tier above AVX-512 runs that.
Status launch_additive_forward(const AdditiveParams& params, const char* isa,
                               const ThreadPool& pool);
Status launch_additive_backward(const AdditiveBackwardParams& params, const char* isa,
                                const ThreadPool& pool);

}  // namespace fused_attention::cpu
