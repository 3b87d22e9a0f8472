#pragma once

#include "../common/mask_fragment.cuh"
#include "../common/tile_order.h"
#include "fused_attention/additive_params.h"
#include "sums.cuh"

namespace fused_attention::cuda::additive {

enum class Side { QUERY, KEY };  // whose rows a block owns

// One tile of rows of one head, and the rows of the other side that it has to do with.
struct OwnTile {
  int b, h;
  int begin;           // first row
  int rows;            // of the tensor
  int live;            // of them within their length; keys behind it are not looked at
  ColumnRange others;  // seen by, or seeing, any of the live rows
  int len_k;           // of this batch row
  Band band;           // row `own` and column `other` as in mask_fragment.cuh

  __device__ OwnTile(const AttentionParams& p, const TileIndex& index, Side side)
      : b(static_cast<int>(index.head / static_cast<uint32_t>(p.heads_q))),
        h(static_cast<int>(index.head % static_cast<uint32_t>(p.heads_q))),
        begin(static_cast<int>(index.block) * TILE) {
    int64_t length = p.len_k;
    if (p.kv_lengths != nullptr) {  // a wrong length gives wrong results and nothing worse
      length = max(int64_t{0}, min(length, int64_t{p.kv_lengths[b]}));
    }
    len_k = static_cast<int>(length);
    const int len_q = static_cast<int>(p.len_q);
    if (side == Side::QUERY) {
      rows = live = min(len_q - begin, TILE);
      others = column_range(band_kv_range(p.band, begin, begin + rows, len_k));
      band = p.band;
    } else {
      rows = min(static_cast<int>(p.len_k) - begin, TILE);
      live = max(0, min(len_k - begin, TILE));
      others = column_range(band_q_range(p.band, begin, begin + live, len_q));
      band = transposed(p.band);
    }
  }
};

// The rows of one side of a head from `first` on.
template <class Element>
__device__ inline Rows rows_from(const Operand& x, const OwnTile& tile, int first, int64_t dim,
                                 bool aligned) {
  const int64_t row_bytes = x.row * BYTES<Element>;
  char* head = static_cast<char*>(x.data) +
               (tile.b * x.batch + tile.h * x.head) * static_cast<int64_t>(BYTES<Element>);
  return {head + first * row_bytes, row_bytes, static_cast<int>(dim), aligned};
}

__device__ inline Rows coefficients_of(const void* v, const OwnTile& tile, int64_t dim,
                                       bool aligned) {
  const float* row = static_cast<const float*>(v) + tile.h * dim;
  return {reinterpret_cast<char*>(const_cast<float*>(row)), 0, static_cast<int>(dim), aligned};
}

__device__ inline float* row_value(const RowVector& x, const OwnTile& tile, int row) {
  return static_cast<float*>(x.data) + tile.b * x.batch + tile.h * x.head + row * x.row;
}

template <class Element>
__device__ __forceinline__ uint32_t first_rows(int rows) {
  return Part<Element>::live_rows([rows](int row) { return row < rows; });
}

// Which of this thread's pairs see each other: bit 4 i + j.
__device__ inline uint32_t visible_pairs(const OwnTile& tile, int first_other, int other_rows) {
  const VisibleFrom seen = visible_from(tile.band, tile.begin + own_of(0),
                                        first_other + other_of(0), first_other + other_rows);
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {
      const int column = j * APART, diagonal = column - i * APART;
      const bool visible = own_of(i) < tile.live && column < seen.columns &&
                           diagonal >= seen.first && diagonal <= seen.last;
      if (visible) bits |= 1u << (i * PAIRS + j);
    }
  }
  return bits;
}

}  // namespace fused_attention::cuda::additive
