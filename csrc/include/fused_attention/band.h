#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FUSED_ATTENTION_HOST_DEVICE __host__ __device__
#else
#define FUSED_ATTENTION_HOST_DEVICE
#endif

namespace fused_attention {

// The mask, once for every C++ backend (masks.py and triton_kernels/band.py say the same, and one
// truth-table test pins all of them):
//
//   key j is visible to query i  iff  i + offset - left <= j <= i + offset + right  and  j <
//   kv_length
//
// Unbounded is 1 << 30, so there are no special cases. `offset` is given, never derived from
// kv_length: kv_length only clips, or right-padded batches would shift their diagonal.
constexpr int64_t BAND_UNBOUNDED = int64_t{1} << 30;

struct Band {
  int64_t left = BAND_UNBOUNDED;
  int64_t right = BAND_UNBOUNDED;
  int64_t offset = 0;
};

struct Range {  // [begin, end); empty ranges are (0, 0)
  int64_t begin = 0;
  int64_t end = 0;
};

enum class TileKind : int32_t { EMPTY = 0, PARTIAL = 1, FULL = 2 };

FUSED_ATTENTION_HOST_DEVICE inline Range band_clip(int64_t begin, int64_t end, int64_t length) {
  begin = begin < 0 ? 0 : begin;
  end = end > length ? length : end;
  return begin < end ? Range{begin, end} : Range{};
}

// Keys that any query of [q_begin, q_end) sees.
FUSED_ATTENTION_HOST_DEVICE inline Range band_kv_range(const Band& band, int64_t q_begin,
                                                       int64_t q_end, int64_t kv_length) {
  if (q_begin >= q_end) return Range{};
  return band_clip(q_begin + band.offset - band.left, q_end + band.offset + band.right, kv_length);
}

// Keys that every query of [q_begin, q_end) sees: tiles inside need no mask.
FUSED_ATTENTION_HOST_DEVICE inline Range band_full_kv_range(const Band& band, int64_t q_begin,
                                                            int64_t q_end, int64_t kv_length) {
  if (q_begin >= q_end) return Range{};
  return band_clip(q_end - 1 + band.offset - band.left, q_begin + band.offset + band.right + 1,
                   kv_length);
}

// Queries that see any key of [k_begin, k_end): the reverse of band_kv_range.
FUSED_ATTENTION_HOST_DEVICE inline Range band_q_range(const Band& band, int64_t k_begin,
                                                      int64_t k_end, int64_t len_q) {
  if (k_begin >= k_end) return Range{};
  return band_clip(k_begin - band.right - band.offset, k_end + band.left - band.offset, len_q);
}

FUSED_ATTENTION_HOST_DEVICE inline TileKind band_tile_kind(const Band& band, int64_t q_begin,
                                                           int64_t q_end, int64_t k_begin,
                                                           int64_t k_end, int64_t kv_length) {
  const Range any = band_kv_range(band, q_begin, q_end, kv_length);
  if (k_begin >= k_end || any.begin >= k_end || any.end <= k_begin) return TileKind::EMPTY;
  const Range full = band_full_kv_range(band, q_begin, q_end, kv_length);
  return full.begin <= k_begin && k_end <= full.end ? TileKind::FULL : TileKind::PARTIAL;
}

}  // namespace fused_attention
