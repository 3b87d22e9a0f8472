#pragma once

#include "arguments.h"
#include "block.cuh"
#include "kernels.h"

// Gradients of S_ij = v . T_ij, T_ij = tanh(q_i + k_j), P = e^(S - lse), out = P V:
//
//   delta_i = dO_i . O_i - dlse_i      dS_ij = P_ij (dO_i . V_j - delta_i)
//   dq_i = v sum_j dS_ij (1 - T_ij^2)  dk_j = v sum_i dS_ij (1 - T_ij^2)
//   dv = sum_ij dS_ij T_ij             dV_j = sum_i P_ij dO_i
//
// One kernel owns tiles of queries and walks the keys (dq, dv), one owns tiles of keys and walks
// the queries (dk, dV). Both compute S, then dS, of one pair of tiles, then walk the columns once
// more; tanh is symmetric in q and k, so they are one template. Each sum is taken by one thread in
// the order of the rows: no atomics, the same bits in every run. dv is summed in parts, of the rows
// of a warp, which a last kernel adds in their order.
namespace fused_attention::cuda::additive {

// delta, one warp for each row; 0 for a query that sees nothing, whose dO and dlse may be anything.
template <class Element>
__global__ void __launch_bounds__(THREADS)
    delta_kernel(const __grid_constant__ BackwardArguments args) {
  const AttentionParams& p = args.params.attention.forward;
  const int64_t item = int64_t{blockIdx.x} * DELTA_ROWS + threadIdx.x / 32;
  if (item >= p.batch * p.heads_q * p.len_q) return;
  const int row = static_cast<int>(item % p.len_q), lane = threadIdx.x % 32;
  const int64_t head = item / p.len_q;
  OwnTile tile(p, {0, static_cast<uint32_t>(head)}, Side::QUERY);
  const bool live = *row_value(p.lse, tile, row) != -INFINITY;
  const Rows out = rows_from<Element>(p.out, tile, row, p.value_dim, args.aligned);
  const Rows grad =
      rows_from<Element>(args.params.attention.grad_out, tile, row, p.value_dim, args.aligned);
  float sum = 0.0f;
  for (int column = lane * 4; live && column < p.value_dim; column += 128) {
    const Quad<Element> x = load_quad<Element>(out, 0, column);
    const Quad<Element> y = load_quad<Element>(grad, 0, column);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = fmaf(x[i], y[i], sum);
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, apart);
  if (lane != 0) return;
  if (live && args.params.attention.grad_lse.data != nullptr) {
    sum -= *row_value(args.params.attention.grad_lse, tile, row);
  }
  *row_value(args.params.attention.delta, tile, row) = sum;
}

// P and dS of this thread's pairs, in the place of scores and dO V^T.
template <Side SIDE>
__device__ void weights_and_gradients(PairSums& S, PairSums& dS, const BackwardArguments& args,
                                      const OwnTile& tile, int first, int other_rows) {
  const uint32_t visible = visible_pairs(tile, first, other_rows);
  const AttentionParams& p = args.params.attention.forward;
#pragma unroll
  for (int n = 0; n < PAIRS; ++n) {  // a query, of the own rows or of the others
    constexpr bool OWN = SIDE == Side::QUERY;
    const int in_tile = OWN ? own_of(n) : other_of(n);
    const int query = (OWN ? tile.begin : first) + in_tile;
    const bool exists = in_tile < (OWN ? tile.rows : other_rows);
    const float lse = exists ? *row_value(p.lse, tile, query) : 0.0f;
    const float delta = exists ? *row_value(args.params.attention.delta, tile, query) : 0.0f;
#pragma unroll
    for (int m = 0; m < PAIRS; ++m) {
      const int i = OWN ? n : m, j = OWN ? m : n;
      const bool seen = (visible >> (i * PAIRS + j) & 1) != 0;
      S[i][j] = seen ? ptx::exp2_approx((S[i][j] - lse) * LOG2_E) : 0.0f;
      dS[i][j] = S[i][j] * (dS[i][j] - delta);
    }
  }
}

// Bits for Part::fetch of rows of dO: what queries that see nothing have is not looked at.
template <class Element>
__device__ uint32_t live_gradients(const AttentionParams& p, const OwnTile& tile, int first,
                                   int rows) {
  return Part<Element>::live_rows(
      [&](int row) { return row < rows && *row_value(p.lse, tile, first + row) != -INFINITY; });
}

template <class Element, Side SIDE>
__global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    gradient_kernel(const __grid_constant__ BackwardArguments args) {
  constexpr bool OWN_QUERY = SIDE == Side::QUERY;
  __shared__ __align__(16) SharedMemory shared;
  const BackwardParams& params = args.params.attention;
  const AttentionParams& p = params.forward;
  const TileOrder& order = OWN_QUERY ? args.query_order : args.key_order;
  const TileIndex index = order(blockIdx.x);
  const OwnTile tile(p, index, SIDE);
  const auto rows = [&](const Operand& x, int first, int64_t dim) {
    return rows_from<Element>(x, tile, first, dim, args.aligned);
  };
  const auto target_of = [&](const Operand& sums, const Operand& result, int64_t dim) {
    return Target{rows_from<Float32>(sums, tile, tile.begin, dim, args.aligned),
                  rows(result, tile.begin, dim), tile.rows};
  };
  const Rows own = rows(OWN_QUERY ? p.query : p.key, tile.begin, p.head_dim);
  const Rows own_value = rows(OWN_QUERY ? params.grad_out : p.value, tile.begin, p.value_dim);
  const Rows v = coefficients_of(args.params.v, tile, p.head_dim, args.aligned_v);
  const Operand& projection_gradient = OWN_QUERY ? params.grad_query : params.grad_key;
  Target target =
      target_of(OWN_QUERY ? args.query_sums : args.key_sums, projection_gradient, p.head_dim);
  Target value_target, v_target;
  if constexpr (OWN_QUERY) {
    const int64_t part = (int64_t{tile.h} * p.batch + tile.b) * order.blocks + index.block;
    const int64_t row_bytes = args.v_sums_width * int64_t{sizeof(float)};
    char* data = reinterpret_cast<char*>(args.v_sums) + part * WARPS * row_bytes;
    v_target.sums = v_target.result = Rows{data, row_bytes, static_cast<int>(p.head_dim), true};
    v_target.rows = WARPS;
  } else {
    value_target = target_of(args.value_sums, params.grad_value, p.value_dim);
  }
  if (tile.others.begin == tile.others.end) {
    target.template clear<Element>();
    if (OWN_QUERY) return v_target.template clear<Float32>();
    return value_target.template clear<Element>();
  }
  const uint32_t own_live = first_rows<Element>(tile.live);
  const uint32_t own_value_live =
      OWN_QUERY ? live_gradients<Element>(p, tile, tile.begin, tile.live) : own_live;
#pragma unroll 1
  for (int first = tile.others.begin; first < tile.others.end; first += TILE) {
    const int others = min(tile.others.end - first, TILE);
    const Rows other = rows(OWN_QUERY ? p.key : p.query, first, p.head_dim);
    const Rows other_value = rows(OWN_QUERY ? p.value : params.grad_out, first, p.value_dim);
    const uint32_t other_live = first_rows<Element>(others);
    const uint32_t other_value_live =
        OWN_QUERY ? other_live : live_gradients<Element>(p, tile, first, others);
    PairSums S, dS;
    compute_scores<Element>(S, shared, own, own_live, other, other_live, v);
    multiply_rows<Element>(dS, shared, own_value, own_value_live, other_value, other_value_live);
    weights_and_gradients<SIDE>(S, dS, args, tile, first, others);
    target.first = value_target.first = v_target.first = first == tile.others.begin;
    target.last = value_target.last = first + TILE >= tile.others.end;
    if constexpr (!OWN_QUERY) {
      store_weights(shared.weights, S);
      accumulate_rows<Element, false>(shared, value_target, other_value, other_value_live, others);
      __syncthreads();  // P has been used by all
    }
    store_weights(shared.weights, dS);
    accumulate_tanh_gradient<Element, OWN_QUERY>(shared, target, own, own_live, other, other_live,
                                                 others, v, v_target);
  }
}

template <class Element>
const void* delta_kernel_address() {
  return reinterpret_cast<const void*>(&delta_kernel<Element>);
}

template <class Element>
const void* query_gradient_kernel_address() {
  return reinterpret_cast<const void*>(&gradient_kernel<Element, Side::QUERY>);
}

template <class Element>
const void* key_gradient_kernel_address() {
  return reinterpret_cast<const void*>(&gradient_kernel<Element, Side::KEY>);
}

}  // namespace fused_attention::cuda::additive
