#pragma once

#include "../common/mask_fragment.cuh"
#include "../common/online_softmax.cuh"
#include "fused_attention/params.h"

// From products to scores, a warp's fragments at a time; forward and both backward kernels come
// through here, so they cannot differ.
namespace fused_attention::cuda::sm80 {

// The scores that a thread block looks at. Rows are queries (forward, dQ) or, with the transposed
// band, keys (dK, dV).
struct ScoreBlock {
  Band band;
  int columns;       // that exist
  ColumnRange full;  // columns that all rows of the thread block see
  ScoreTerms terms;
  float alibi_slope;
};

// The first column of the first step: groups of 32 keys share random bits.
__device__ inline int first_step(const ColumnRange& columns) { return columns.begin / 32 * 32; }

// q . k becomes scores; `slope`, when given, is multiplied by the derivative of the softcap. `row`
// and `column`: of the thread's first element.
template <int M, int N>
__device__ __forceinline__ void change_scores(float (&S)[M][N][4], const ScoreBlock& block, int row,
                                              int column, float (*slope)[N][4] = nullptr) {
  if (!block.terms.changed) return;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const float factors[2] = {block.terms.scale, block.terms.scale};
    rescale_rows(S[m], factors);
    if (block.terms.softcap > 0.0f) {
      apply_softcap(S[m], block.terms.softcap, slope == nullptr ? nullptr : slope[m]);
    }
    if (block.alibi_slope != 0.0f) {
      add_alibi(S[m], block.alibi_slope, position_of(block.band, row + m * 16) - column);
    }
  }
}

// -inf where a row does not see a column. `begin`: the first column of the step.
template <int M, int N>
__device__ __forceinline__ void mask_scores(float (&S)[M][N][4], const ScoreBlock& block, int row,
                                            int column, int begin) {
  if (block.full.begin <= begin && begin + N * 8 <= block.full.end) return;
  const VisibleFrom visible = visible_from(block.band, row, column, block.columns);
#pragma unroll
  for (int m = 0; m < M; ++m) mask_fragment(S[m], visible, m * 16);
}

__device__ __forceinline__ float alibi_slope_of(const AttentionParams& p, int b, int h) {
  return p.alibi_slopes != nullptr ? p.alibi_slopes[b * p.alibi_batch + h] : 0.0f;
}

__device__ __forceinline__ DropoutStream dropout_of(const AttentionParams& p, int b, int h) {
  return {load_dropout_state(p.dropout), static_cast<uint32_t>(b * p.heads_q + h)};
}

}  // namespace fused_attention::cuda::sm80
