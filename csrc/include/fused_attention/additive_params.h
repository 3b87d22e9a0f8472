#pragma once

#include "fused_attention/params.h"

namespace fused_attention {

// One additive attention: scores v . tanh(query + key). Of `attention` count the operands, their
// sizes (heads_q = heads_kv), out, lse, kv_lengths and the band.
struct AdditiveParams {
  AttentionParams attention;
  const void* v = nullptr;  // [heads, head_dim], contiguous, fp32 (fp64 for fp64)
};

struct AdditiveBackwardParams {
  BackwardParams attention;  // gradients that are not wanted have no data; delta is not written
  const void* v = nullptr;
  void* grad_v = nullptr;   // [heads, head_dim], as v; nullptr: not wanted
  void* v_parts = nullptr;  // what each block of queries adds to grad_v; the launch fills it in

  bool wants_projections() const {
    return grad_v != nullptr || attention.grad_query.data != nullptr ||
           attention.grad_key.data != nullptr;
  }
};

}  // namespace fused_attention
