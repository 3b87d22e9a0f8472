#pragma once

#include <cstdint>

#include "../common/score_terms.h"
#include "fused_attention/params.h"

// What the kernels are given, by value: the step of decoding, and what the host has worked out.
namespace fused_attention::cuda::decode {

struct Arguments {
  DecodeParams step;
  ScoreTerms terms;
  int group = 1;          // query heads of one key head
  int row_tiles = 1;      // of the group's heads times the queries
  int splits = 1;         // thread blocks that share the keys of one tile of rows
  bool combined = false;  // parts go to the workspace and are combined by another kernel
  bool aligned = false;   // query and caches can be read 16 bytes at a time
  // [splits, batch, heads_q, len_q(, sum_width)]: log2-sum-exp2 and normalised sum of each part.
  float* part_lse = nullptr;
  float* part_sums = nullptr;
  int sum_width = 0;  // value_dim, rounded up to whole float4
};

}  // namespace fused_attention::cuda::decode
