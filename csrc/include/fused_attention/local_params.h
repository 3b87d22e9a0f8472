#pragma once

#include <cmath>
#include <cstdint>

#include "fused_attention/params.h"

namespace fused_attention {

// Attention of each query to a window around a position of its own, as plain pointers;
// python/fused_attention/local/reference.py is the definition.
struct LocalParams {
  DType dtype = DType::FLOAT32;
  int64_t batch = 0, heads_q = 0, heads_kv = 0;
  int64_t len_q = 0, len_k = 0, head_dim = 0, value_dim = 0;
  Operand query, key, value, out;
  RowVector lse;
  RowVector position, sigma;             // of lse's dtype; sigma absent: fixed_sigma
  const int32_t* key_lengths = nullptr;  // [batch]
  double width = 0.0, fixed_sigma = 0.0, scale = 1.0;
  bool log_bias = false;  // the Gaussian's logarithm is added to the scores
};

struct LocalBackwardParams {
  LocalParams forward;  // with out and lse of the forward
  Operand grad_out, grad_query, grad_key, grad_value;
  RowVector grad_lse;                   // absent: zero
  RowVector delta;                      // written: rowsum(dO * O) - dLSE
  RowVector grad_position, grad_sigma;  // of lse's dtype; grad_sigma absent: not wanted
};

// The window of one query: keys j with |j - center| <= width, center = floor(position).
struct LocalWindow {
  int64_t center = 0;
  Range keys;
};

// A width of inf is every key. A position that is not finite sees none of a finite window.
FUSED_ATTENTION_HOST_DEVICE inline LocalWindow local_window(double position, double width,
                                                            int64_t length) {
  constexpr double FAR = 2147483648.0;  // further than any key from any other
  const double center = floor(position);
  const double near = center > -FAR ? (center < FAR ? center : FAR) : -FAR;  // NaN: -FAR
  const int64_t half = static_cast<int64_t>(width < FAR ? floor(width) : 4 * FAR);
  LocalWindow window;
  window.center = static_cast<int64_t>(near);
  window.keys = band_clip(window.center - half, window.center + half + 1, length);
  return window;
}

// Keys that exist for batch b.
inline int64_t local_key_length(const LocalParams& p, int64_t b) {
  const int64_t length = p.key_lengths != nullptr ? p.key_lengths[b] : p.len_k;
  return length < 0 ? 0 : length < p.len_k ? length : p.len_k;
}

}  // namespace fused_attention
