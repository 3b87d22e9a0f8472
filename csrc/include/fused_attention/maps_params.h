#pragma once

#include <cstdint>

#include "fused_attention/launch.h"
#include "fused_attention/params.h"
#include "fused_attention/status.h"

namespace fused_attention {

// What is asked about the weights P = e^(S - lse) of an attention that has been computed. Results
// are contiguous and in the accumulation type; nullptr: not wanted. `heads` below are the chosen
// ones, in their order. Packed tensors have no batch dimension, and keys are numbered by their rows
// in the tensor, as queries are.
struct MapsParams {
  AttentionParams attention;       // query, key, masks, scores and lse; no value, no out
  const int32_t* heads = nullptr;  // [head_count] query heads; nullptr: all
  int64_t head_count = 0;
  const int32_t* rows = nullptr;  // [row_count] queries whose weights are wanted
  int64_t row_count = 0;
  void* weights = nullptr;         // [B, heads, rows, Lk]
  void* column_mass = nullptr;     // [B, heads, Lk]: sum over the queries
  void* entropy = nullptr;         // [B, heads, Lq], nats
  int64_t* argmax = nullptr;       // [B, heads, Lq], -1: no key
  int64_t top_k = 0;               // the highest weights of a query, descending; 0: not wanted
  void* top_weights = nullptr;     // [B, heads, Lq, top_k]
  int64_t* top_indices = nullptr;  // [B, heads, Lq, top_k], -1 behind the last visible key
};

namespace cpu {

// isa: as in launch.h; the tiers above avx512 have no products of their own here.
Status launch_maps(const MapsParams& params, const char* isa, const ThreadPool& pool);

}  // namespace cpu
}  // namespace fused_attention
