#pragma once

#include "../common/mask_fragment.cuh"
#include "../common/online_softmax.cuh"
#include "../sm80/tiles.cuh"
#include "config.h"
#include "kernels.h"
#include "rotary.cuh"

// One part of the keys for one tile of rows: out = softmax(scores) V of these keys, and its lse.
//
// The rows of a tile are the query heads of one key head, for one query after the other, so that
// what is read of the cache serves all of them. Warps share nothing but Q until the end:
//
//   key tile   0  1  2  3  4  5  6 ...      a warp's ring, STAGES deep: K | V | K | V
//   warp       0  1  2  3  0  1  2 ...
//
//   for each tile of the warp:
//     its K and V have arrived             wait for this lane's copies, then for the other lanes
//     S = Q K^T; scale, softcap, ALiBi, mask; m, l, P = 2^(S - m); O = O * alpha + P V
//     all lanes are done with K and V      start loading the tile after next into their place
//   each warp's m, l and O into its ring; barrier; the block adds them up
//
// Which warp takes a tile depends on the tile's position alone, and sums are taken in a fixed
// order.
namespace fused_attention::cuda::decode {

using sm80::FragmentAddress;
using sm80::Tile;

// What a thread block works on.
struct Part {
  int b, h_kv, split;
  int first_row;  // of the tile, among the group's heads times the queries
  int rows;       // that exist
  Range keys;     // of this part, visible to any of the rows
  Range full_keys;
  Band band;

  __device__ Part(const Arguments& args, uint32_t item) {
    const AttentionParams& p = args.step.attention;
    const uint32_t tiles = args.row_tiles, splits = args.splits;
    first_row = static_cast<int>(item % tiles) * TILE_ROWS;
    split = static_cast<int>(item / tiles % splits);
    const uint32_t head = item / tiles / splits;
    h_kv = static_cast<int>(head % static_cast<uint32_t>(p.heads_kv));
    b = static_cast<int>(head / static_cast<uint32_t>(p.heads_kv));
    rows = min(args.group * static_cast<int>(p.len_q) - first_row, TILE_ROWS);
  }

  __device__ void choose_keys(const Arguments& args, const Cache& cache) {
    const AttentionParams& p = args.step.attention;
    band = {p.band.left, p.band.right, cache.length - p.len_q};
    const int first = first_row / args.group, last = (first_row + rows - 1) / args.group + 1;
    const Range all = after(band_kv_range(band, first, last, cache.length), cache.begin);
    full_keys = after(band_full_kv_range(band, first, last, cache.length), cache.begin);
    int from = 0, size = INVARIANT_KEYS;
    if (!args.step.batch_invariant) {
      from = static_cast<int>(all.begin) / TILE_KEYS * TILE_KEYS;
      const int tiles = (static_cast<int>(all.end) - from + TILE_KEYS - 1) / TILE_KEYS;
      size = (tiles + args.splits - 1) / args.splits * TILE_KEYS;
    }
    const int64_t begin = from + int64_t{split} * size;
    keys = {max(begin, all.begin), min(begin + size, all.end)};
    if (keys.begin >= keys.end) keys = Range{};
  }

  __device__ static Range after(const Range& range, int begin) {
    return {max(range.begin, static_cast<int64_t>(begin)), range.end};
  }
  __device__ bool sees_all(int begin, int end) const {
    return full_keys.begin <= begin && end <= full_keys.end;
  }
  __device__ int query(const Arguments& args, int row) const {
    return (first_row + row) / args.group;
  }
  __device__ int head(const Arguments& args, int row) const {
    return h_kv * args.group + (first_row + row) % args.group;
  }
};

// The tile's rows of Q, rotated, as one tile in shared memory; rows and dims that do not exist are
// 0.
template <class Config>
__device__ void load_queries(uint32_t Q_smem, const Arguments& args, const Part& part) {
  using Element = typename Config::Element;
  const DecodeParams& step = args.step;
  const AttentionParams& p = step.attention;
  const int dim = static_cast<int>(p.head_dim);
  for (int i = threadIdx.x; i < TILE_ROWS * Config::CHUNKS; i += Config::THREADS) {
    const int row = i / Config::CHUNKS, chunk = i % Config::CHUNKS;
    const int bytes = row < part.rows ? sm80::chunk_bytes(dim, chunk) : 0;
    uint4 elements{};
    if (bytes > 0) {
      const int query = part.query(args, row), head = part.head(args, row);
      const uint16_t* q = static_cast<const uint16_t*>(p.query.data) + part.b * p.query.batch +
                          head * p.query.head + query * p.query.row;
      if (step.rotary_dim > chunk * 8) {
        const int64_t position = int64_t{step.cache_lengths[part.b]} + query;
        elements = rotated_chunk<Element>(step, q, chunk, position);
      } else if (args.aligned && bytes == 16) {
        elements = *reinterpret_cast<const uint4*>(q + chunk * 8);
      } else {
        elements =
            sm80::load_chunk_by_elements(reinterpret_cast<const char*>(q + chunk * 8), bytes);
      }
    }
    ptx::store_shared(Q_smem + Tile<Config::DIM>::Layout::offset(row, chunk), elements);
  }
}

// A warp's tile of keys and values into one stage of its ring; keys outside of the part become 0,
// and neither their page nor their memory is looked at.
template <class Config>
__device__ __forceinline__ void load_key_tile(uint32_t stage, const Arguments& args,
                                              const Cache& cache, const Part& part, int tile) {
  using T = Tile<Config::DIM>;
  const AttentionParams& p = args.step.attention;
  const int lane = threadIdx.x % 32;
  // Lane i finds the place of key i, for all.
  const int key = tile * TILE_KEYS + lane % TILE_KEYS;
  const int exists = part.keys.begin <= key && key < part.keys.end;
  KeyPlace mine{0, 0};
  if (exists) mine = place_of(args.step, cache, key);
  constexpr int ROWS_AT_ONCE = 32 / T::LANES;
#pragma unroll
  for (int first = 0; first < TILE_KEYS; first += ROWS_AT_ONCE) {
    const int row = first + lane / T::LANES;
    const KeyPlace place{__shfl_sync(0xFFFFFFFFu, mine.page, row),
                         __shfl_sync(0xFFFFFFFFu, mine.row, row)};
    const bool there = __shfl_sync(0xFFFFFFFFu, exists, row) != 0;
    const uint16_t* k = static_cast<const uint16_t*>(p.key.data) + place.offset(p.key, part.h_kv);
    const uint16_t* v =
        static_cast<const uint16_t*>(p.value.data) + place.offset(p.value, part.h_kv);
#pragma unroll
    for (int group = 0; group < T::CHUNKS / T::LANES; ++group) {
      const int chunk = lane % T::LANES + group * T::LANES;
      const uint32_t dst = stage + T::Layout::offset(row, chunk);
      const int key_bytes = there ? sm80::chunk_bytes(static_cast<int>(p.head_dim), chunk) : 0;
      const int value_bytes = there ? sm80::chunk_bytes(static_cast<int>(p.value_dim), chunk) : 0;
      if (args.aligned) {
        ptx::copy_async_16(dst, k + chunk * 8, key_bytes);
        ptx::copy_async_16(dst + Config::TILE_BYTES, v + chunk * 8, value_bytes);
      } else {
        const char* from_k = reinterpret_cast<const char*>(k + chunk * 8);
        const char* from_v = reinterpret_cast<const char*>(v + chunk * 8);
        ptx::store_shared(dst, sm80::load_chunk_by_elements(from_k, key_bytes));
        ptx::store_shared(dst + Config::TILE_BYTES,
                          sm80::load_chunk_by_elements(from_v, value_bytes));
      }
    }
  }
}

// What a thread knows of its two rows, g and g + 8 of the tile.
struct ThreadRows {
  int position[2];  // of the query, on the keys' axis
  ColumnRange sees[2];
  float alibi_slope[2];

  __device__ ThreadRows(const Arguments& args, const Cache& cache, const Part& part) {
    const AttentionParams& p = args.step.attention;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(static_cast<int>(threadIdx.x) % 32 / 4 + half * 8, part.rows - 1);
      const int query = part.query(args, row);
      position[half] = position_of(part.band, query);
      sees[half] = column_range(band_kv_range(part.band, query, query + 1, cache.length));
      sees[half].begin = max(sees[half].begin, cache.begin);
      alibi_slope[half] = 0.0f;
      if (p.alibi_slopes != nullptr) {
        alibi_slope[half] = p.alibi_slopes[part.b * p.alibi_batch + part.head(args, row)];
      }
    }
  }
};

// q . k becomes scores; rows have a range and a slope of their own, as they are heads too.
__device__ __forceinline__ void finish_scores(float (&S)[2][4], const ScoreTerms& terms,
                                              const ThreadRows& rows, const Part& part, int key) {
  const int lane_key = key + threadIdx.x % 4 * 2;
  if (terms.changed) {
    const float factors[2] = {terms.scale, terms.scale};
    rescale_rows(S, factors);
    if (terms.softcap > 0.0f) apply_softcap(S, terms.softcap);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int distance = rows.position[e / 2] - (lane_key + n * 8 + e % 2);
        const float slope = rows.alibi_slope[e / 2];
        S[n][e] = fmaf(-slope, fabsf(static_cast<float>(distance)), S[n][e]);
      }
    }
  }
  if (part.sees_all(key, key + TILE_KEYS)) return;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int k = lane_key + n * 8 + e % 2;
      if (k < rows.sees[e / 2].begin || k >= rows.sees[e / 2].end) S[n][e] = -INFINITY;
    }
  }
}

// This warp's unnormalised O into its ring, and what its rows need to be added to the other warps'.
template <class Config>
__device__ __forceinline__ void store_sums(const float (&O)[Config::DIM / 8][4],
                                           const SoftmaxRows& rows, float exponent_scale,
                                           float* sums, float* warp_max, float* warp_sum) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  __syncwarp();  // all lanes have read the keys and values that this overwrites
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* row = sums + (g + half * 8) * Config::SUM_STRIDE;
#pragma unroll
    for (int n = 0; n < Config::DIM / 8; ++n) {
      *reinterpret_cast<float2*>(row + n * 8 + t * 2) =
          make_float2(O[n][half * 2], O[n][half * 2 + 1]);
    }
    const float sum = quad_sum(rows.sum[half]);
    if (t == 0) {
      // In log2 units from here on; -inf stays -inf.
      warp_max[g + half * 8] = rows.max[half] * exponent_scale;
      warp_sum[g + half * 8] = sum;
    }
  }
}

// Which row of [splits, batch, heads_q, len_q] is this part's.
__device__ inline int64_t part_row(const Arguments& args, const Part& part, int head, int query) {
  const AttentionParams& p = args.step.attention;
  return ((part.split * p.batch + part.b) * p.heads_q + head) * p.len_q + query;
}

// Row `row` of the tile: from maxima and sums of the warps to the weights of their O, in their
// place, and the lse. A sink joins where nothing is combined later.
template <class Config>
__device__ void finish_row(const Arguments& args, const Part& part, int row, float* warp_max,
                           const float* warp_sum) {
  const AttentionParams& p = args.step.attention;
  const int head = part.head(args, row), query = part.query(args, row);
  float sink = -INFINITY;
  if (p.sinks != nullptr && !args.combined) {
    sink = static_cast<const float*>(p.sinks)[head] * LOG2_E;
  }
  float top = sink;
#pragma unroll
  for (int w = 0; w < Config::WARPS; ++w) top = fmaxf(top, warp_max[w * TILE_ROWS + row]);
  const float shift = top == -INFINITY ? 0.0f : top;
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < Config::WARPS; ++w) {
    const int at = w * TILE_ROWS + row;
    warp_max[at] = exp2f(warp_max[at] - shift);
    total = fmaf(warp_sum[at], warp_max[at], total);
  }
  total += exp2f(sink - shift);
#pragma unroll
  for (int w = 0; w < Config::WARPS; ++w) {
    warp_max[w * TILE_ROWS + row] *= total == 0.0f ? 0.0f : 1.0f / total;
  }
  const float lse = total == 0.0f ? -INFINITY : shift + log2f(total);
  if (args.combined) {
    args.part_lse[part_row(args, part, head, query)] = lse;
  } else {
    sm80::row_values(p.lse, part.b, head, query)[0] = lse / LOG2_E;
  }
}

// The sum over the warps of dims d of a row.
template <class Config>
__device__ __forceinline__ float sum_of_warps(const float* sums, const float* weights, int row,
                                              int d) {
  constexpr int RING = Config::RING_BYTES / static_cast<int>(sizeof(float));
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < Config::WARPS; ++w) {
    sum = fmaf(sums[w * RING + row * Config::SUM_STRIDE + d], weights[w * TILE_ROWS + row], sum);
  }
  return sum;
}

template <class Config>
__device__ void store_part(const Arguments& args, const Part& part, const float* sums,
                           const float* weights) {
  const AttentionParams& p = args.step.attention;
  const int lane = threadIdx.x % 32;
  const int width = args.combined ? args.sum_width : static_cast<int>(p.value_dim);
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < part.rows; row += Config::WARPS) {
    const int head = part.head(args, row), query = part.query(args, row);
    float* part_sums = args.part_sums + part_row(args, part, head, query) * args.sum_width;
    uint16_t* out = static_cast<uint16_t*>(p.out.data) + part.b * p.out.batch + head * p.out.head +
                    query * p.out.row;
#pragma unroll
    for (int first = 0; first < Config::DIM; first += 32) {
      const int d = first + lane;
      if (d >= width) continue;
      const float value = sum_of_warps<Config>(sums, weights, row, d);
      if (args.combined) {
        part_sums[d] = value;
      } else {
        out[d] = static_cast<uint16_t>(pack<typename Config::Element>(value, 0.0f));
      }
    }
  }
}

// A part without keys: its lse says so, and its sums are not looked at.
__device__ inline void store_nothing(const Arguments& args, const Part& part) {
  const int row = threadIdx.x;
  if (row < part.rows) {
    args.part_lse[part_row(args, part, part.head(args, row), part.query(args, row))] = -INFINITY;
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::THREADS)
    decode_kernel(const __grid_constant__ Arguments args) {
  using Element = typename Config::Element;
  constexpr int DIM = Config::DIM, WARPS = Config::WARPS, STAGES = Config::STAGES;
  constexpr int STAGE_BYTES = 2 * Config::TILE_BYTES;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t Q_smem = ptx::shared_address(shared);
  const int warp = threadIdx.x / 32;
  const uint32_t ring = Q_smem + Config::QUERY_BYTES + warp * Config::RING_BYTES;
  float* sums = reinterpret_cast<float*>(shared + Config::QUERY_BYTES);
  float* warp_max = sums + WARPS * Config::RING_BYTES / sizeof(float);
  float* warp_sum = warp_max + WARPS * TILE_ROWS;

  Part part(args, blockIdx.x);
  const Cache cache(args.step, part.b);
  part.choose_keys(args, cache);
  if (args.combined && part.keys.begin == part.keys.end) return store_nothing(args, part);

  const int tile_end = static_cast<int>((part.keys.end + TILE_KEYS - 1) / TILE_KEYS);
  const int first_tile = static_cast<int>(part.keys.begin / TILE_KEYS);
  int tile = first_tile + ((warp - first_tile) & (WARPS - 1));
#pragma unroll
  for (int stage = 0; stage < STAGES; ++stage) {
    if (tile + stage * WARPS < tile_end) {
      load_key_tile<Config>(ring + stage * STAGE_BYTES, args, cache, part, tile + stage * WARPS);
    }
    ptx::copy_async_commit();
  }
  load_queries<Config>(Q_smem, args, part);
  __syncthreads();  // Q is there for all

  const ThreadRows thread_rows(args, cache, part);
  const FragmentAddress<DIM> Q_frag = sm80::fragment_by_rows<DIM>(Q_smem);
  float O[1][DIM / 8][4];
  sm80::clear(O);
  SoftmaxRows rows{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
  int stage = 0;
#pragma unroll 1
  for (; tile < tile_end; tile += WARPS) {
    const uint32_t K_smem = ring + stage * STAGE_BYTES, V_smem = K_smem + Config::TILE_BYTES;
    ptx::copy_async_wait<STAGES - 1>();
    __syncwarp();  // K and V are there for all lanes
    float S[1][2][4];
    sm80::multiply_tiles<Element>(S, Q_frag, sm80::fragment_by_columns<DIM>(K_smem));
    finish_scores(S[0], args.terms, thread_rows, part, tile * TILE_KEYS);
    float alpha[2];
    const bool moved = online_softmax_update(S[0], rows, args.terms.exponent_scale, alpha);
    if (moved) rescale_rows(O[0], alpha);
    sm80::accumulate_product<Element, DIM>(O, S, sm80::fragment_by_rows<DIM>(V_smem));
    __syncwarp();  // K and V have been used by all lanes
    if (tile + STAGES * WARPS < tile_end) {
      load_key_tile<Config>(K_smem, args, cache, part, tile + STAGES * WARPS);
    }
    ptx::copy_async_commit();
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }

  constexpr int RING = Config::RING_BYTES / static_cast<int>(sizeof(float));
  store_sums<Config>(O[0], rows, args.terms.exponent_scale, sums + warp * RING,
                     warp_max + warp * TILE_ROWS, warp_sum + warp * TILE_ROWS);
  __syncthreads();  // the sums of all warps are there
  if (threadIdx.x < part.rows) {
    finish_row<Config>(args, part, threadIdx.x, warp_max, warp_sum);
  }
  __syncthreads();  // and their weights
  store_part<Config>(args, part, sums, warp_max);
}

template <class Element, int DIM>
const void* decode_kernel_address() {
  return reinterpret_cast<const void*>(&decode_kernel<Config<Element, DIM>>);
}

}  // namespace fused_attention::cuda::decode
