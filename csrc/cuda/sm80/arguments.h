#pragma once

#include "../common/score_terms.h"
#include "../common/tile_order.h"
#include "fused_attention/params.h"

// What a kernel is given, by value: the problem, and what the host has worked out about it.
namespace fused_attention::cuda::sm80 {

struct ForwardArguments {
  AttentionParams problem;
  TileOrder order;  // of blocks of queries
  ScoreTerms terms;
  bool aligned_rows = false;  // query, key, value and out: 16 bytes
};

struct BackwardArguments {
  BackwardParams params;
  TileOrder query_order, key_order;
  int block_q = 0;  // rows of query_order's blocks
  ScoreTerms terms;
  bool aligned_rows = false;
};

}  // namespace fused_attention::cuda::sm80
