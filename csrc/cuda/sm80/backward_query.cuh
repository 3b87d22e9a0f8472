#pragma once

#include "backward.cuh"
#include "query_block.cuh"

// dQ, one block of queries of one head per thread block. A warp owns 16 M queries; Q and dO stay in
// shared memory, K and V come in two stages: while one is worked on the next arrives.
//
//   for each step of keys that the block sees:
//     this step's K and V have arrived, the others' stage is free      wait, barrier
//     start loading the next step's
//     S = Q K^T, dP = dO V^T, dS;  dQ += dS K       K is read by columns, then by rows
namespace fused_attention::cuda::sm80 {

template <class Config>
__global__ void __launch_bounds__(Config::THREADS, Config::MIN_BLOCKS)
    query_gradient_kernel(const __grid_constant__ BackwardArguments args) {
  using Element = typename Config::Element;
  constexpr int DIM = Config::DIM, M = Config::M, BLOCK_KV = Config::BLOCK_KV, N = BLOCK_KV / 8;
  constexpr int THREADS = Config::THREADS;
  constexpr uint32_t ROW_BYTES = Tile<DIM>::ROW_BYTES;
  constexpr uint32_t STAGE_BYTES = 2 * BLOCK_KV * ROW_BYTES;  // K, then V
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t Q_smem = ptx::shared_address(shared);
  const uint32_t dO_smem = Q_smem + Config::BLOCK_Q * ROW_BYTES;
  const uint32_t stages = dO_smem + Config::BLOCK_Q * ROW_BYTES;

  const AttentionParams& p = args.params.forward;
  const QueryBlock block(p, args.query_order(blockIdx.x), Config::BLOCK_Q);
  const Sequence& seq = block.seq;
  const bool aligned = args.aligned_rows;
  const int64_t b = block.behind ? 0 : block.b;
  const RowsInMemory grad_query =
      rows_of(args.params.grad_query, b, block.h, seq.q_start, seq.len_q, p.head_dim, aligned);
  if (block.behind) {
    const int step = static_cast<int>(args.query_order.blocks) * Config::BLOCK_Q;
    for (int begin = block.begin; begin < grad_query.count; begin += step) {
      clear_rows<THREADS>(grad_query, begin, Config::BLOCK_Q);
    }
    return;
  }
  if (block.rows <= 0) return;
  const RowsInMemory keys =
      rows_of(p.key, b, block.h_kv, seq.k_start, seq.len_k, p.head_dim, aligned);
  const RowsInMemory values =
      rows_of(p.value, b, block.h_kv, seq.k_start, seq.len_k, p.value_dim, aligned);

  const int warp_row = threadIdx.x / 32 * 16 * M;
  const int query = block.begin + warp_row + threadIdx.x % 32 / 4;  // this thread's first row
  const uint32_t warp_tile = Q_smem + warp_row * ROW_BYTES;
  FragmentAddress<DIM> Q_frag = fragment_by_rows<DIM>(warp_tile);
  FragmentAddress<DIM> dO_frag = fragment_by_rows<DIM>(dO_smem + warp_row * ROW_BYTES);

  float lse[M][2], delta[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = query + m * 16 + half * 8;
      const bool exists = row < block.begin + block.rows;
      const float* lse_row = row_values(p.lse, b, block.h, seq.q_start + row);
      const float* delta_row = row_values(args.params.delta, b, block.h, seq.q_start + row);
      lse[m][half] = exists ? exponent_of_lse(*lse_row) : INFINITY;
      delta[m][half] = exists ? *delta_row : 0.0f;
    }
  }

  const ScoreBlock scores{seq.band, static_cast<int>(seq.len_k), block.full_keys, args.terms,
                          alibi_slope_of(p, block.b, block.h)};
  float dQ[M][DIM / 8][4];
  clear(dQ);
  const int key_end = block.keys.end;
  int key = first_step(block.keys);
  uint32_t stage = 0;
  if (key < key_end) {
    load_tile<DIM, Config::BLOCK_Q, THREADS>(
        Q_smem, rows_of(p.query, b, block.h, seq.q_start, seq.len_q, p.head_dim, aligned),
        block.begin);
    load_tile<DIM, Config::BLOCK_Q, THREADS>(
        dO_smem,
        rows_of(args.params.grad_out, b, block.h, seq.q_start, seq.len_q, p.value_dim, aligned),
        block.begin);
    load_tile<DIM, BLOCK_KV, THREADS>(stages, keys, key);
    load_tile<DIM, BLOCK_KV, THREADS>(stages + BLOCK_KV * ROW_BYTES, values, key);
    ptx::copy_async_commit();
  }
#pragma unroll 1
  for (; key < key_end; key += BLOCK_KV, stage ^= 1) {
    Q_frag.start_step();
    dO_frag.start_step();
    ptx::copy_async_wait<0>();
    __syncthreads();  // this stage is there for all, the other one has been used
    const uint32_t K_smem = stages + stage * STAGE_BYTES;
    if (key + BLOCK_KV < key_end) {
      const uint32_t next = stages + (stage ^ 1) * STAGE_BYTES;
      load_tile<DIM, BLOCK_KV, THREADS>(next, keys, key + BLOCK_KV);
      load_tile<DIM, BLOCK_KV, THREADS>(next + BLOCK_KV * ROW_BYTES, values, key + BLOCK_KV);
      ptx::copy_async_commit();
    }

    float S[M][N][4], dP[M][N][4];
    multiply_tiles<Element>(S, Q_frag, fragment_by_columns<DIM>(K_smem));
    multiply_tiles<Element>(dP, dO_frag, fragment_by_columns<DIM>(K_smem + BLOCK_KV * ROW_BYTES));
    const int column = key + threadIdx.x % 4 * 2;
    if (p.dropout.threshold != 0) {
      const DropoutStream dropout = dropout_of(p, block.b, block.h);
      uint32_t kept[M];
#pragma unroll
      for (int m = 0; m < M; ++m) kept[m] = kept_bits<N>(dropout, query + m * 16, column);
      apply_dropout(dP, kept, static_cast<float>(p.dropout.keep_scale));
    }
    const auto of_rows = [](const float (&values)[M][2]) {
      return [&values](int) { return [&values](int m, int e) { return values[m][e / 2]; }; };
    };
    score_gradients(S, dP, scores, query, column, key, of_rows(lse), of_rows(delta));
#pragma unroll
    for (int m = 0; m < M; ++m) {  // dO of a query that sees nothing may have been NaN
      if (!__any_sync(0xFFFFFFFFu, lse[m][0] == INFINITY || lse[m][1] == INFINITY)) continue;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (lse[m][e / 2] == INFINITY) dP[m][n][e] = 0.0f;
        }
      }
    }
    accumulate_product<Element, DIM>(dQ, dP, fragment_by_rows<DIM>(K_smem));
  }

  scale_rows(dQ, args.terms.scale);
  store_rows<Element, DIM>(dQ, warp_tile, grad_query, block.begin + warp_row);
}

template <class Element, int DIM>
const void* query_gradient_kernel_address() {
  return reinterpret_cast<const void*>(&query_gradient_kernel<QueryGradientConfig<Element, DIM>>);
}

}  // namespace fused_attention::cuda::sm80
