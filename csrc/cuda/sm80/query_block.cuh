#pragma once

#include "../common/mask_fragment.cuh"
#include "../common/sequence.h"
#include "../common/tile_order.h"

namespace fused_attention::cuda::sm80 {

// What a thread block works on.
struct QueryBlock {
  Sequence seq;
  int b, h, h_kv;
  int begin;              // first query, inside the sequence
  int rows;               // that exist
  ColumnRange keys;       // visible to any of them
  ColumnRange full_keys;  // visible to all of them: no mask is needed inside
  bool behind;            // the rows behind the last sequence

  __device__ QueryBlock(const AttentionParams& p, const TileIndex& index, int block_rows)
      : b(static_cast<int>(index.head / static_cast<uint32_t>(p.heads_q))),
        h(static_cast<int>(index.head % static_cast<uint32_t>(p.heads_q))),
        h_kv(h / static_cast<int>(p.heads_q / p.heads_kv)),
        begin(static_cast<int>(index.block) * block_rows),
        behind(b == p.batch) {
    seq = clipped_sequence(p, b);
    rows = min(static_cast<int>(seq.len_q) - begin, block_rows);
    keys = column_range(band_kv_range(seq.band, begin, begin + rows, seq.len_k));
    full_keys = column_range(band_full_kv_range(seq.band, begin, begin + rows, seq.len_k));
  }
};

}  // namespace fused_attention::cuda::sm80
