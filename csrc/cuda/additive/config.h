#pragma once

#include "../common/element.h"

// Shapes of one thread block, as plain C++: kernels and host read them.
//
// A block owns TILE rows (queries, or for the gradients of keys and values keys) and walks the
// TILE-row tiles of the others. Whatever is summed over a dim comes through shared memory CHUNK
// columns at a time, so that dims have no limit. Shared memory stays below 48 KB, and two blocks
// of 128 registers a thread fill the registers of an SM.
namespace fused_attention::cuda::additive {

constexpr int TILE = 64;
constexpr int THREADS = 256;
constexpr int MIN_BLOCKS = 2;
constexpr int CHUNK = 32;
// Four floats more than a row has: eight rows that are read 16 bytes at a time then lie in
// different banks.
constexpr int PAD = 4;
constexpr int CHUNK_STRIDE = CHUNK + PAD;
constexpr int TILE_STRIDE = TILE + PAD;
// 16 x 16 threads share the pairs of two tiles: each holds 4 x 4 of them, 16 rows apart.
constexpr int PAIRS = 4;
constexpr int APART = TILE / PAIRS;
static_assert(APART * APART == THREADS, "every pair has one thread");

constexpr int WARPS = THREADS / 32;
constexpr int DELTA_ROWS = WARPS;  // of a block of the delta kernel, one a warp
constexpr int REDUCE_COLUMNS = 32;

struct SharedMemory {
  float own[TILE * CHUNK_STRIDE];
  float other[TILE * CHUNK_STRIDE];
  float coefficients[CHUNK];
  float weights[TILE * TILE_STRIDE];  // [own][other]
  float rescale[TILE], normalise[TILE];
};

}  // namespace fused_attention::cuda::additive
