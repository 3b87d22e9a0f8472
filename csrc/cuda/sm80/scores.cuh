#pragma once

#include "../common/mask_fragment.cuh"
#include "fused_attention/params.h"

// From products to scores, a warp's fragments at a time; forward and both backward kernels come
// through here, so they cannot differ.
namespace fused_attention::cuda::sm80 {

// The scores that a thread block looks at. Rows are queries (forward, dQ) or, with the transposed
// band, keys (dK, dV).
struct ScoreBlock {
  Band band;
  int columns;  // that exist
  Range full;   // columns that all rows of the thread block see
  ScoreTerms terms;
  float alibi_slope;
};

// The first column of the first step: groups of 32 keys share random bits.
__device__ inline int first_step(const Range& columns) {
  return static_cast<int>(columns.begin) / 32 * 32;
}

// q . k becomes scores. `row` and `column`: of the thread's first element.
template <int M, int N>
__device__ __forceinline__ void change_scores(float (&S)[M][N][4], const ScoreBlock& block, int row,
                                              int column) {
  if (!block.terms.changed) return;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const int position = position_of(block.band, row + m * 16);
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int distance = position + e / 2 * 8 - (column + n * 8 + e % 2);
        S[m][n][e] = score_of(block.terms, S[m][n][e], block.alibi_slope, distance).value;
      }
    }
  }
}

// -inf where a row does not see a column. `begin`: the first column of the step.
template <int M, int N>
__device__ __forceinline__ void mask_scores(float (&S)[M][N][4], const ScoreBlock& block, int row,
                                            int column, int begin) {
  if (block.full.begin <= begin && begin + N * 8 <= block.full.end) return;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const ColumnRange seen[2] = {visible_columns(block.band, row + m * 16, block.columns),
                                 visible_columns(block.band, row + m * 16 + 8, block.columns)};
    mask_fragment(S[m], column, seen);
  }
}

__device__ __forceinline__ float alibi_slope_of(const AttentionParams& p, int b, int h) {
  return p.alibi_slopes != nullptr ? p.alibi_slopes[b * p.alibi_batch + h] : 0.0f;
}

__device__ __forceinline__ DropoutStream dropout_of(const AttentionParams& p, int b, int h) {
  return {p.dropout, static_cast<uint32_t>(b * p.heads_q + h)};
}

}  // namespace fused_attention::cuda::sm80
