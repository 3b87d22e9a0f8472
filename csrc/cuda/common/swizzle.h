#pragma once

#include <cstdint>

#include "fused_attention/band.h"

// Where the 16-byte chunks of a tile lie in shared memory.
//
// ldmatrix reads 8 rows at one chunk column in one go, which takes one wavefront only if the eight
// chunks lie in different groups of 4 banks: at different addresses / 16 modulo 8. Rows lie
// densely, and inside a row the chunks change places by an exclusive or with the row number:
//
//   rows of a multiple of 128 bytes      every row begins at bank 0: chunk ^ (row % 8)
//   rows of an odd multiple of 64 bytes  even rows begin at bank 0, odd ones at 16: chunk ^ (row/2
//   % 4)
//
// Both leave a chunk inside its aligned group of 8 or 4, so that any such row length is possible.
namespace fused_attention::cuda {

template <int CHUNKS>
struct Swizzle {
  static_assert(CHUNKS % 4 == 0, "a row is a multiple of 64 bytes");
  static constexpr int GROUP = CHUNKS % 8 == 0 ? 8 : 4;  // chunks that change places

  FUSED_ATTENTION_HOST_DEVICE static constexpr uint32_t mask(uint32_t row) {
    return GROUP == 8 ? row % 8 : row / 2 % 4;
  }
  // In bytes from the beginning of the tile.
  FUSED_ATTENTION_HOST_DEVICE static constexpr uint32_t offset(uint32_t row, uint32_t chunk) {
    return (row * CHUNKS + (chunk ^ mask(row))) * 16;
  }
};

}  // namespace fused_attention::cuda
