#pragma once

#include "../common/sequence.h"
#include "backward.cuh"

// dK and dV, one block of keys of one key/value head per thread block. A warp owns 16 M keys; K and
// V stay in shared memory, Q and dO come in two stages, query head after query head of the group.
//
//   for each head of the group, for each step of queries that see the block:
//     this step's Q, dO, lse, delta have arrived, the others' stage is free     wait, barrier
//     start loading the next step's
//     S^T = K Q^T, dP^T = V dO^T, dS^T
//     dV += P^T dO,  dK += dS^T Q          P^T and dS^T never leave the registers
//
// Where dK and dV do not fit into one warp's registers together, ROLES = 2 blocks share the work:
// the even one sums dK, the odd one dV.
namespace fused_attention::cuda::sm80 {

struct KeyBlock {
  Sequence seq;
  int b, h_kv;
  int begin;            // first key, inside the sequence
  int rows;             // of the tensors in this sequence; those behind seq.len_k get zeros
  Band band;            // transposed: queries that a key sees
  ColumnRange queries;  // visible to any key of the block
  ColumnRange full;     // visible to all
  bool behind;          // the rows behind the last sequence

  __device__ KeyBlock(const AttentionParams& p, const TileIndex& index, int block_rows)
      : b(static_cast<int>(index.head / static_cast<uint32_t>(p.heads_kv))),
        h_kv(static_cast<int>(index.head % static_cast<uint32_t>(p.heads_kv))),
        begin(static_cast<int>(index.block) * block_rows),
        behind(b == p.batch) {
    seq = clipped_sequence(p, b);
    rows = static_cast<int>(key_rows(p, b, seq));
    band = transposed(seq.band);
    const int64_t end = min(int64_t{begin} + block_rows, seq.len_k);
    queries = column_range(band_kv_range(band, begin, end, seq.len_q));
    full = column_range(band_full_kv_range(band, begin, end, seq.len_q));
  }
};

template <class Config>
struct KeySharedMemory {
  static constexpr uint32_t ROW_BYTES = Tile<Config::DIM>::ROW_BYTES;
  static constexpr uint32_t QUERY_BYTES = Config::BLOCK_Q * ROW_BYTES;
  uint32_t K, V, stages, statistics;

  __device__ explicit KeySharedMemory(uint32_t base)
      : K(base),
        V(K + Config::BLOCK_KV * ROW_BYTES),
        stages(V + Config::BLOCK_KV * ROW_BYTES),
        statistics(stages + 4 * QUERY_BYTES) {}
  __device__ uint32_t Q(uint32_t stage) const { return stages + stage * 2 * QUERY_BYTES; }
  __device__ uint32_t dO(uint32_t stage) const { return Q(stage) + QUERY_BYTES; }
  __device__ uint32_t lse(uint32_t stage) const {
    return statistics + stage * 2 * Config::BLOCK_Q * static_cast<uint32_t>(sizeof(float));
  }
  __device__ uint32_t delta(uint32_t stage) const {
    return lse(stage) + Config::BLOCK_Q * static_cast<uint32_t>(sizeof(float));
  }
};

// lse and delta of one query, on their way through a register.
struct Statistics {
  float lse, delta;
};

template <class Config>
__device__ __forceinline__ Statistics load_statistics(const BackwardArguments& args,
                                                      const KeyBlock& block, int h, int begin) {
  const int row = begin + static_cast<int>(threadIdx.x);
  // A query that does not exist has Q = dO = 0, so any finite weight will do.
  if (threadIdx.x >= Config::BLOCK_Q || row >= block.seq.len_q) return {0.0f, 0.0f};
  const AttentionParams& p = args.params.forward;
  return {exponent_of_lse(*row_values(p.lse, block.b, h, block.seq.q_start + row)),
          *row_values(args.params.delta, block.b, h, block.seq.q_start + row)};
}

template <class Config>
__device__ __forceinline__ void store_statistics(const KeySharedMemory<Config>& smem,
                                                 uint32_t stage, const Statistics& x) {
  if (threadIdx.x >= Config::BLOCK_Q) return;
  ptx::store_shared(smem.lse(stage) + threadIdx.x * 4, x.lse);
  ptx::store_shared(smem.delta(stage) + threadIdx.x * 4, x.delta);
}

// Zeros in the rows of dO of queries that see nothing, as they may be NaN and 0 * NaN is NaN. All
// warps look at the same values, so they agree on whether there are any.
template <class Config>
__device__ __forceinline__ void clear_dead_rows(const KeySharedMemory<Config>& smem,
                                                uint32_t stage) {
  using T = Tile<Config::DIM>;
  bool dead = false;
#pragma unroll
  for (int row = threadIdx.x % 32; row < Config::BLOCK_Q; row += 32) {
    dead |= ptx::load_shared_float(smem.lse(stage) + row * 4) == INFINITY;
  }
  if (!__any_sync(0xFFFFFFFFu, dead)) return;
  for (int row = threadIdx.x / T::LANES; row < Config::BLOCK_Q; row += Config::THREADS / T::LANES) {
    if (ptx::load_shared_float(smem.lse(stage) + row * 4) != INFINITY) continue;
    for (int chunk = threadIdx.x % T::LANES; chunk < T::CHUNKS; chunk += T::LANES) {
      ptx::store_shared(smem.dO(stage) + T::Layout::offset(row, chunk), make_uint4(0, 0, 0, 0));
    }
  }
  __syncthreads();
}

// The accumulator times `factor` to the tensor; keys that do not exist get zeros.
template <class Config>
__device__ __forceinline__ void store_key_rows(float (&acc)[Config::M][Config::DIM / 8][4],
                                               float factor, const KeyBlock& block,
                                               const Operand& gradient, int64_t dim, bool aligned,
                                               uint32_t warp_tile, int warp_row) {
  const int key = block.begin + warp_row + threadIdx.x % 32 / 4;
#pragma unroll
  for (int m = 0; m < Config::M; ++m) {
#pragma unroll
    for (int n = 0; n < Config::DIM / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool exists = key + m * 16 + e / 2 * 8 < block.seq.len_k;
        acc[m][n][e] = exists ? acc[m][n][e] * factor : 0.0f;
      }
    }
  }
  const RowsInMemory rows =
      rows_of(gradient, block.b, block.h_kv, block.seq.k_start, block.rows, dim, aligned);
  store_rows<typename Config::Element, Config::DIM>(acc, warp_tile, rows, block.begin + warp_row);
}

// dK (if KEY) and dV (if VALUE) of one block.
template <class Config, bool KEY, bool VALUE>
__device__ __forceinline__ void sum_key_gradients(const BackwardArguments& args,
                                                  const KeyBlock& block) {
  using Element = typename Config::Element;
  constexpr int DIM = Config::DIM, M = Config::M, BLOCK_Q = Config::BLOCK_Q, N = BLOCK_Q / 8;
  constexpr int THREADS = Config::THREADS;
  extern __shared__ __align__(1024) unsigned char shared[];
  const KeySharedMemory<Config> smem(ptx::shared_address(shared));
  const AttentionParams& p = args.params.forward;
  const Sequence& seq = block.seq;
  const bool aligned = args.aligned_rows;

  const int warp_row = threadIdx.x / 32 * 16 * M;
  const int key = block.begin + warp_row + threadIdx.x % 32 / 4;  // this thread's first row
  const uint32_t K_warp = smem.K + warp_row * Tile<DIM>::ROW_BYTES;
  const uint32_t V_warp = smem.V + warp_row * Tile<DIM>::ROW_BYTES;

  const int group = static_cast<int>(p.heads_q / p.heads_kv);
  int h = block.h_kv * group;
  const int last_h = h + group - 1;
  const int first = first_step(block.queries), end = block.queries.end;
  const auto load_queries = [&](int head, int begin, uint32_t stage) {
    load_tile<DIM, BLOCK_Q, THREADS>(
        smem.Q(stage), rows_of(p.query, block.b, head, seq.q_start, seq.len_q, p.head_dim, aligned),
        begin);
    load_tile<DIM, BLOCK_Q, THREADS>(
        smem.dO(stage),
        rows_of(args.params.grad_out, block.b, head, seq.q_start, seq.len_q, p.value_dim, aligned),
        begin);
  };

  float dK[KEY ? M : 1][DIM / 8][4], dV[VALUE ? M : 1][DIM / 8][4];
  clear(dK);
  clear(dV);
  if (first < end) {
    const auto load_keys = [&](uint32_t tile, const Operand& x, int64_t dim) {
      const RowsInMemory rows =
          rows_of(x, block.b, block.h_kv, seq.k_start, seq.len_k, dim, aligned);
      load_tile<DIM, Config::BLOCK_KV, THREADS>(tile, rows, block.begin);
    };
    load_keys(smem.K, p.key, p.head_dim);
    if (KEY) load_keys(smem.V, p.value, p.value_dim);
    load_queries(h, first, 0);
    ptx::copy_async_commit();
    store_statistics(smem, 0, load_statistics<Config>(args, block, h, first));
  }
  uint32_t stage = 0;
#pragma unroll 1
  for (int begin = first; begin < end; stage ^= 1) {
    ptx::copy_async_wait<0>();
    __syncthreads();  // this stage is there for all, the other one has been used
    const bool last_step = begin + BLOCK_Q >= end;
    const int next_h = last_step ? h + 1 : h;
    const int next = !last_step ? begin + BLOCK_Q : h < last_h ? first : end;
    Statistics statistics{};
    if (next < end) {
      load_queries(next_h, next, stage ^ 1);
      ptx::copy_async_commit();
      statistics = load_statistics<Config>(args, block, next_h, next);
    }
    clear_dead_rows(smem, stage);

    const ScoreBlock scores{block.band, static_cast<int>(seq.len_q), block.full, args.terms,
                            alibi_slope_of(p, block.b, h)};
    const int lane_column = threadIdx.x % 4 * 2, query = begin + lane_column;
    float S[M][N][4];
    multiply_tiles<Element>(S, fragment_by_rows<DIM>(K_warp),
                            fragment_by_columns<DIM>(smem.Q(stage)));
    uint32_t kept[M];
    const bool drop = p.dropout.threshold != 0;
    if (drop) {
      const DropoutStream dropout = dropout_of(p, block.b, h);
#pragma unroll
      for (int m = 0; m < M; ++m) kept[m] = kept_bits_transposed<N>(dropout, key + m * 16, query);
    }
    const auto of_columns = [&](uint32_t values, int n) {
      const float2 pair = ptx::load_shared_float2(values + (n * 8 + lane_column) * 4);
      return [pair](int, int e) { return e % 2 == 0 ? pair.x : pair.y; };
    };
    const auto lse = [&](int n) { return of_columns(smem.lse(stage), n); };
    const auto delta = [&](int n) { return of_columns(smem.delta(stage), n); };
    if constexpr (KEY) {
      float dP[M][N][4];
      multiply_tiles<Element>(dP, fragment_by_rows<DIM>(V_warp),
                              fragment_by_columns<DIM>(smem.dO(stage)));
      if (drop) apply_dropout(dP, kept, static_cast<float>(p.dropout.keep_scale));
      score_gradients(S, dP, scores, key, query, begin, lse, delta);
      accumulate_product<Element, DIM>(dK, dP, fragment_by_rows<DIM>(smem.Q(stage)));
    } else {
      change_scores(S, scores, key, query);
      weights_of(S, scores, key, query, begin, lse);
    }
    if constexpr (VALUE) {
      if (drop) apply_dropout(S, kept, 1.0f);
      accumulate_product<Element, DIM>(dV, S, fragment_by_rows<DIM>(smem.dO(stage)));
    }
    if (next < end) store_statistics(smem, stage ^ 1, statistics);
    h = next_h;
    begin = next;
  }

  if constexpr (KEY) {
    store_key_rows<Config>(dK, args.terms.scale, block, args.params.grad_key, p.head_dim, aligned,
                           K_warp, warp_row);
  }
  if constexpr (VALUE) {
    store_key_rows<Config>(dV, static_cast<float>(p.dropout.keep_scale), block,
                           args.params.grad_value, p.value_dim, aligned, V_warp, warp_row);
  }
}

// Zeros in the rows behind the last sequence.
template <class Config>
__device__ void clear_key_rows_behind(const BackwardArguments& args, const KeyBlock& block) {
  const AttentionParams& p = args.params.forward;
  const int step = static_cast<int>(args.key_order.blocks) * Config::BLOCK_KV;
  const auto clear_all = [&](const Operand& gradient, int64_t dim) {
    const RowsInMemory rows =
        rows_of(gradient, 0, block.h_kv, block.seq.k_start, block.rows, dim, false);
    for (int begin = block.begin; begin < rows.count; begin += step) {
      clear_rows<Config::THREADS>(rows, begin, Config::BLOCK_KV);
    }
  };
  clear_all(args.params.grad_key, p.head_dim);
  clear_all(args.params.grad_value, p.value_dim);
}

template <class Config>
__global__ void __launch_bounds__(Config::THREADS, Config::MIN_BLOCKS)
    key_gradient_kernel(const __grid_constant__ BackwardArguments args) {
  const KeyBlock block(args.params.forward, args.key_order(blockIdx.x / Config::ROLES),
                       Config::BLOCK_KV);
  if (block.behind) return clear_key_rows_behind<Config>(args, block);
  if (block.begin >= block.rows) return;
  if constexpr (Config::ROLES == 1) {
    sum_key_gradients<Config, true, true>(args, block);
  } else if (blockIdx.x % 2 == 0) {
    sum_key_gradients<Config, true, false>(args, block);
  } else {
    sum_key_gradients<Config, false, true>(args, block);
  }
}

template <class Element, int DIM>
const void* key_gradient_kernel_address() {
  return reinterpret_cast<const void*>(&key_gradient_kernel<KeyGradientConfig<Element, DIM>>);
}

}  // namespace fused_attention::cuda::sm80
