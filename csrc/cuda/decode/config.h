#pragma once

#include "../common/element.h"

// Shapes of one thread block, as plain C++: the kernels are instantiated with these structs, the
// host launches by them.
//
// Decoding waits for memory: what counts is that enough of the cache is under way at any time. A
// warp works alone on every WARPS-th tile of 16 keys, which it fetches into a ring of its own; no
// warp waits for another before the end. Shared memory stays below 99 KB, the most that a block of
// sm_86 and sm_89 can have, and lets two blocks run on an SM of sm_80 (164 KB).
namespace fused_attention::cuda::decode {

constexpr int TILE_ROWS = 16;  // pairs of query and head of one group: the rows of an mma
constexpr int TILE_KEYS = 16;
constexpr int DIMS[] = {64, 128, 256};  // others are padded with zeros by the loader

// With batch_invariant, keys [512 n, 512 n + 512) are always one part.
constexpr int INVARIANT_KEYS = 512;

template <class Element_, int DIM_>
struct Config {
  using Element = Element_;
  static constexpr int DIM = DIM_;
  static constexpr int CHUNKS = DIM / 8;  // of 16 bytes in a row
  static constexpr int WARPS = DIM <= 128 ? 4 : 2;
  static constexpr int THREADS = WARPS * 32;
  static constexpr int STAGES = DIM <= 64 ? 3 : 2;
  static constexpr int TILE_BYTES = TILE_KEYS * DIM * ELEMENT_BYTES;  // of K or of V
  static constexpr int RING_BYTES = STAGES * 2 * TILE_BYTES;          // of a warp
  // At the end the rings hold each warp's sum of P V. Eight floats more than a row has put the rows
  // that one instruction writes into different banks.
  static constexpr int SUM_STRIDE = DIM + 8;
  static constexpr int STATISTICS_BYTES = 2 * WARPS * TILE_ROWS * static_cast<int>(sizeof(float));
  static constexpr int QUERY_BYTES = TILE_ROWS * DIM * ELEMENT_BYTES;
  static constexpr int SHARED_BYTES = QUERY_BYTES + WARPS * RING_BYTES + STATISTICS_BYTES;
  static_assert((WARPS & (WARPS - 1)) == 0, "tiles are dealt out by the low bits of their number");
  static_assert(TILE_ROWS * SUM_STRIDE * sizeof(float) <= RING_BYTES, "sums fit into the rings");
  static_assert(SHARED_BYTES <= 99 * 1024, "more shared memory than sm_86 has");
};

constexpr int APPEND_THREADS = 128;
constexpr int COMBINE_WARPS = 4;

}  // namespace fused_attention::cuda::decode
