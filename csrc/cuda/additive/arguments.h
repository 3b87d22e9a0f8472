#pragma once

#include "../common/tile_order.h"
#include "fused_attention/additive_params.h"

// What a kernel is given, by value: the problem, and what the host has worked out about it.
namespace fused_attention::cuda::additive {

struct ForwardArguments {
  AdditiveParams problem;
  TileOrder order;       // of tiles of queries
  bool aligned = false;  // rows of all operands begin at multiples of four elements
  bool aligned_v = false;
  Operand sums;  // fp32 sums of the rows of out between tiles of keys
};

struct BackwardArguments {
  AdditiveBackwardParams params;
  TileOrder query_order, key_order;
  bool aligned = false, aligned_v = false;
  Operand query_sums, key_sums, value_sums;  // as above, of the gradients
  float* v_sums = nullptr;                   // [heads, batch, query tiles, WARPS, v_sums_width]
  int v_sums_width = 0;
};

}  // namespace fused_attention::cuda::additive
