#pragma once

#include "arguments.h"
#include "block.cuh"
#include "kernels.h"

// out = softmax(S) V and lse, with S_ij = v . tanh(q_i + k_j), a thread block for TILE queries:
//
//   for each tile of TILE keys that any of the queries sees
//     for each part of CHUNK columns: S += v tanh(q + k)        compute_scores
//     mask, online softmax: P into shared memory                update_rows
//     for each part of TILE columns: O = alpha O + P V          accumulate_rows
//
// Nothing has more than TILE x TILE elements.
namespace fused_attention::cuda::additive {

// Maxima and sums of a thread's own rows, the sums over its own columns only.
struct RowStatistics {
  float max[PAIRS], sum[PAIRS];
};

__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int apart = 1; apart < APART; apart *= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, apart));
  }
  return x;
}

__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int apart = 1; apart < APART; apart *= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, apart);
  return x;
}

// S <- e^(S - new maximum), 0 where not visible. alpha: what earlier sums have to be multiplied by.
// -inf: a row that has seen nothing yet is shifted by 0, so that all its weights are 0, not NaN.
__device__ __forceinline__ void online_softmax_update(PairSums& S, uint32_t visible,
                                                      RowStatistics& rows, float (&alpha)[PAIRS]) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {
      if ((visible >> (i * PAIRS + j) & 1) == 0) S[i][j] = -INFINITY;
      top = fmaxf(top, S[i][j]);
    }
    top = fmaxf(rows.max[i], row_max(top));
    const float shift = top == -INFINITY ? 0.0f : top;
    alpha[i] = ptx::exp2_approx((rows.max[i] - shift) * LOG2_E);
    rows.max[i] = top;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {
      S[i][j] = ptx::exp2_approx((S[i][j] - shift) * LOG2_E);
      sum += S[i][j];
    }
    rows.sum[i] = fmaf(rows.sum[i], alpha[i], sum);
  }
}

__device__ inline void finish_rows(const ForwardArguments& args, const OwnTile& tile,
                                   SharedMemory& shared, const RowStatistics& rows) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    const float total = row_sum(rows.sum[i]);
    if (threadIdx.x % APART != 0) continue;
    shared.normalise[own_of(i)] = total > 0.0f ? 1.0f / total : 0.0f;
    if (own_of(i) < tile.rows) {
      *row_value(args.problem.attention.lse, tile, tile.begin + own_of(i)) =
          total > 0.0f ? rows.max[i] + logf(total) : -INFINITY;
    }
  }
}

template <class Element>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    forward_kernel(const __grid_constant__ ForwardArguments args) {
  __shared__ __align__(16) SharedMemory shared;
  const AttentionParams& p = args.problem.attention;
  const OwnTile tile(p, args.order(blockIdx.x), Side::QUERY);
  const Rows query = rows_from<Element>(p.query, tile, tile.begin, p.head_dim, args.aligned);
  const Rows v = coefficients_of(args.problem.v, tile, p.head_dim, args.aligned_v);
  Target target;
  target.sums = rows_from<Float32>(args.sums, tile, tile.begin, p.value_dim, args.aligned);
  target.result = rows_from<Element>(p.out, tile, tile.begin, p.value_dim, args.aligned);
  target.rows = tile.rows;
  RowStatistics rows;
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    rows.max[i] = -INFINITY;
    rows.sum[i] = 0.0f;
  }
  if (tile.others.begin == tile.others.end) {
    finish_rows(args, tile, shared, rows);
    return target.clear<Element>();
  }
  const uint32_t query_live = first_rows<Element>(tile.rows);
#pragma unroll 1
  for (int first = tile.others.begin; first < tile.others.end; first += TILE) {
    const int keys = min(tile.others.end - first, TILE);
    const uint32_t keys_live = first_rows<Element>(keys);
    PairSums S;
    compute_scores<Element>(S, shared, query, query_live,
                            rows_from<Element>(p.key, tile, first, p.head_dim, args.aligned),
                            keys_live, v);
    float alpha[PAIRS];
    online_softmax_update(S, visible_pairs(tile, first, keys), rows, alpha);
    store_weights(shared.weights, S);
    if (threadIdx.x % APART == 0) {
#pragma unroll
      for (int i = 0; i < PAIRS; ++i) shared.rescale[own_of(i)] = alpha[i];
    }
    target.first = first == tile.others.begin;
    target.last = first + TILE >= tile.others.end;
    if (target.last) finish_rows(args, tile, shared, rows);
    accumulate_rows<Element, true>(
        shared, target, rows_from<Element>(p.value, tile, first, p.value_dim, args.aligned),
        keys_live, keys);
  }
}

template <class Element>
const void* forward_kernel_address() {
  return reinterpret_cast<const void*>(&forward_kernel<Element>);
}

}  // namespace fused_attention::cuda::additive
