#pragma once

#include "fused_attention/params.h"

namespace fused_attention::cuda {

constexpr float LOG2_E = 1.4426950408889634f;

// Scale, softcap and ALiBi in the form in which kernels apply them.
struct ScoreTerms {
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  // Are scores changed before the softmax? If not, they stay Q K^T and the scale stands in the
  // exponent: e^(scale * x) = 2^(exponent_scale * x).
  bool changed = false;
  float exponent_scale = LOG2_E;  // positive: the maximum of the exponents is that of the scores
};

inline ScoreTerms score_terms(const AttentionParams& params) {
  ScoreTerms terms;
  terms.scale = static_cast<float>(params.scale);
  terms.softcap = static_cast<float>(params.softcap);
  // A scale below this could make the score of a sink, sink / scale, infinite.
  const bool foldable = params.scale > 1e-20;
  terms.changed = params.softcap > 0.0 || params.alibi_slopes != nullptr || !foldable;
  terms.exponent_scale = terms.changed ? LOG2_E : terms.scale * LOG2_E;
  return terms;
}

}  // namespace fused_attention::cuda
