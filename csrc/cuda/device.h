#pragma once

#include "fused_attention/status.h"

namespace fused_attention::cuda {

// Whether the driver of this machine can run what this library was built for. Asks the driver's
// version alone: nothing is initialised, so a process may still fork.
Status driver_status();

}  // namespace fused_attention::cuda
