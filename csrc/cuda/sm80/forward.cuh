#pragma once

#include "../common/online_softmax.cuh"
#include "arguments.h"
#include "config.h"
#include "kernels.h"
#include "query_block.cuh"
#include "scores.cuh"
#include "tiles.cuh"

// Forward: out = softmax(scores) V, one block of queries of one head per thread block.
//
//               d                 keys of one step               shared memory: Q | K | V
//          +---------+            +-----------+
//  warp 0  |         |            |  S, P     |                  registers of a warp: its rows of
//  warp 1  |    Q    |  x  K^T =  |           |  x  V  += O      S (then P) and of O, and m and l
//  ...     |         |            |           |                  of these rows
//          +---------+            +-----------+
//
//  for each step of keys that the block sees:
//    K has arrived, everybody is done with V        wait, barrier: V may be overwritten
//    start loading V;  S = Q K^T                    V travels behind this product,
//    V has arrived, everybody is done with K        wait, barrier: K may be overwritten
//    start loading the next K                       the next K behind all that follows
//    scale, softcap, ALiBi, mask; m, l, P = 2^(S - m); O *= alpha; dropout
//    O += P V
//
// Numerics of -inf: see online_softmax.cuh. A sink is a key with score `sink` and value 0.
namespace fused_attention::cuda::sm80 {

// Weights that dropout takes become 0; the others are scaled at the end.
template <int N>
__device__ __forceinline__ void drop_weights(float (&P)[N][4], const DropoutStream& stream,
                                             int query, int key) {
  constexpr int AT_ONCE = N < 8 ? N : 8;
#pragma unroll
  for (int first = 0; first < N; first += AT_ONCE) {
    const uint32_t kept = kept_bits<AT_ONCE>(stream, query, key + first * 8);
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if ((kept >> (n * 4 + e) & 1) == 0) P[first + n][e] = 0.0f;
      }
    }
  }
}

// m and l before the first key: nothing, or the sink, whose weight one thread of a quad holds.
__device__ __forceinline__ SoftmaxRows start_rows(const AttentionParams& p, const ScoreTerms& terms,
                                                  int h) {
  float sink = -INFINITY;
  if (p.sinks != nullptr) sink = static_cast<const float*>(p.sinks)[h];
  const float sum = sink != -INFINITY && threadIdx.x % 4 == 0 ? 1.0f : 0.0f;
  if (!terms.changed && sink != -INFINITY) sink /= terms.scale;
  return {{sink, sink}, {sum, sum}};
}

// Normalises O and writes lse of the rows that exist; `query`: of the thread's first row.
template <int M, int N>
__device__ __forceinline__ void finish_rows(float (&O)[M][N][4], const SoftmaxRows (&rows)[M],
                                            const ForwardArguments& args, const QueryBlock& block,
                                            int query) {
  const AttentionParams& p = args.problem;
  const float unit = args.terms.changed ? 1.0f : args.terms.scale;
  const float keep = static_cast<float>(p.dropout.keep_scale);
  float* lse = row_values(p.lse, block.b, block.h, block.seq.q_start);
#pragma unroll
  for (int m = 0; m < M; ++m) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(rows[m].sum[half]);
      factor[half] = sum == 0.0f ? 0.0f : keep / sum;
      const int row = query + m * 16 + half * 8;
      if (threadIdx.x % 4 != 0 || row >= block.begin + block.rows) continue;
      lse[row * p.lse.row] = sum == 0.0f ? -INFINITY : fmaf(rows[m].max[half], unit, logf(sum));
    }
    rescale_rows(O[m], factor);
  }
}

// Zeros, and -inf as lse, in the rows behind the last sequence.
template <class Config>
__device__ void clear_rows_behind(const ForwardArguments& args, const QueryBlock& block) {
  const AttentionParams& p = args.problem;
  const int count = static_cast<int>(block.seq.len_q);
  const RowsInMemory out = rows_of(p.out, 0, block.h, block.seq.q_start, count, p.value_dim, false);
  float* lse = row_values(p.lse, 0, block.h, block.seq.q_start);
  const int step = static_cast<int>(args.order.blocks) * Config::BLOCK_Q;
  for (int begin = block.begin; begin < count; begin += step) {
    clear_rows<Config::THREADS>(out, begin, Config::BLOCK_Q);
    for (int row = begin + threadIdx.x; row < min(begin + Config::BLOCK_Q, count);
         row += Config::THREADS) {
      lse[row * p.lse.row] = -INFINITY;
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::THREADS, Config::MIN_BLOCKS)
    forward_kernel(const __grid_constant__ ForwardArguments args) {
  using Element = typename Config::Element;
  constexpr int DIM = Config::DIM, M = Config::M, BLOCK_KV = Config::BLOCK_KV;
  constexpr int THREADS = Config::THREADS;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t Q_smem = ptx::shared_address(shared);
  const uint32_t K_smem = Q_smem + Config::BLOCK_Q * Tile<DIM>::ROW_BYTES;
  const uint32_t V_smem = K_smem + BLOCK_KV * Tile<DIM>::ROW_BYTES;

  const AttentionParams& p = args.problem;
  const QueryBlock block(p, args.order(blockIdx.x), Config::BLOCK_Q);
  if (block.behind) return clear_rows_behind<Config>(args, block);
  if (block.rows <= 0) return;
  const Sequence& seq = block.seq;
  const RowsInMemory queries =
      rows_of(p.query, block.b, block.h, seq.q_start, seq.len_q, p.head_dim, args.aligned_rows);
  const RowsInMemory keys =
      rows_of(p.key, block.b, block.h_kv, seq.k_start, seq.len_k, p.head_dim, args.aligned_rows);
  const RowsInMemory values =
      rows_of(p.value, block.b, block.h_kv, seq.k_start, seq.len_k, p.value_dim, args.aligned_rows);

  const int warp_row = threadIdx.x / 32 * 16 * M;
  const int query = block.begin + warp_row + threadIdx.x % 32 / 4;  // this thread's first row
  const uint32_t warp_tile = Q_smem + warp_row * Tile<DIM>::ROW_BYTES;
  FragmentAddress<DIM> Q_frag = fragment_by_rows<DIM>(warp_tile);
  FragmentAddress<DIM> K_frag = fragment_by_columns<DIM>(K_smem);
  FragmentAddress<DIM> V_frag = fragment_by_rows<DIM>(V_smem);
  const ScoreBlock scores{seq.band, static_cast<int>(seq.len_k), block.full_keys, args.terms,
                          alibi_slope_of(p, block.b, block.h)};

  float O[M][DIM / 8][4];
  SoftmaxRows rows[M];
  clear(O);
#pragma unroll
  for (int m = 0; m < M; ++m) rows[m] = start_rows(p, args.terms, block.h);

  const int key_end = block.keys.end;
  int key = first_step(block.keys);
  if (key < key_end) {
    load_tile<DIM, Config::BLOCK_Q, THREADS>(Q_smem, queries, block.begin);
    load_tile<DIM, BLOCK_KV, THREADS>(K_smem, keys, key);
    ptx::copy_async_commit();
  }
#pragma unroll 1
  for (; key < key_end; key += BLOCK_KV) {
    Q_frag.start_step();
    K_frag.start_step();
    V_frag.start_step();
    ptx::copy_async_wait<0>();
    __syncthreads();  // K (at first Q, too) is there for all; V of the step before has been used
    load_tile<DIM, BLOCK_KV, THREADS>(V_smem, values, key);
    ptx::copy_async_commit();

    float S[M][BLOCK_KV / 8][4];
    multiply_tiles<Element>(S, Q_frag, K_frag);

    ptx::copy_async_wait<0>();
    __syncthreads();  // V is there for all; K has been used
    if (key + BLOCK_KV < key_end) {
      load_tile<DIM, BLOCK_KV, THREADS>(K_smem, keys, key + BLOCK_KV);
      ptx::copy_async_commit();
    }

    const int column = key + threadIdx.x % 4 * 2;
    change_scores(S, scores, query, column);
    mask_scores(S, scores, query, column, key);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float alpha[2];
      const bool moved = online_softmax_update(S[m], rows[m], args.terms.exponent_scale, alpha);
      if (moved) rescale_rows(O[m], alpha);
      if (p.dropout.threshold != 0) {
        drop_weights(S[m], dropout_of(p, block.b, block.h), query + m * 16, column);
      }
    }
    accumulate_product<Element, DIM>(O, S, V_frag);
  }

  finish_rows(O, rows, args, block, query);
  const RowsInMemory out =
      rows_of(p.out, block.b, block.h, seq.q_start, seq.len_q, p.value_dim, args.aligned_rows);
  store_rows<Element, DIM>(O, warp_tile, out, block.begin + warp_row);
}

template <class Element, int DIM>
const void* forward_kernel_address() {
  return reinterpret_cast<const void*>(&forward_kernel<ForwardConfig<Element, DIM>>);
}

}  // namespace fused_attention::cuda::sm80
