#pragma once

#include <cstdint>

#include "fused_attention/band.h"

// Which block of which head a thread block works on.
//
// Thread blocks start in the order of their index. Heads are taken in sections whose keys and
// values fit into the L2 cache together; inside a section all heads do their longest block first,
// then the next, so that under a causal mask no long block is left over when the others have
// finished.
namespace fused_attention::cuda {

struct TileIndex {
  uint32_t block;  // of rows
  uint32_t head;   // batch row * heads + head
};

struct TileOrder {
  uint32_t blocks = 0;      // per head
  uint32_t heads = 0;       // in all batch rows together
  uint32_t section = 1;     // heads side by side
  bool last_first = false;  // the last block is the longest

  FUSED_ATTENTION_HOST_DEVICE TileIndex operator()(uint32_t item) const {
    const uint32_t per_section = blocks * section;
    const uint32_t first = item / per_section * section;
    const uint32_t in_section = item % per_section;
    const uint32_t width = heads - first < section ? heads - first : section;
    const uint32_t block = in_section / width;
    return {last_first ? blocks - 1 - block : block, first + in_section % width};
  }
};

constexpr int64_t L2_SHARE = int64_t{16} << 20;  // bytes of keys and values used at a time

inline uint32_t heads_side_by_side(int64_t heads, int64_t heads_per_kv_head,
                                   int64_t bytes_per_kv_head) {
  const int64_t fitting = L2_SHARE / (bytes_per_kv_head > 0 ? bytes_per_kv_head : 1);
  const int64_t section = (fitting > 1 ? fitting : 1) * heads_per_kv_head;
  const int64_t most = heads > 1 ? heads : 1;
  return static_cast<uint32_t>(section < most ? section : most);
}

}  // namespace fused_attention::cuda
