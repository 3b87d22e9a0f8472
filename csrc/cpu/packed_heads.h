#pragma once

#include <cstdint>

#include "fused_attention/params.h"

// Keys and values rearranged for the tiles, once per key/value head: every block of queries and
// every query head of the group reads them. They are packed in granules of 32 keys, each by the
// thread that needs it first; so what nobody sees is never packed, and there is no pass of its own.
namespace fused_attention::cpu {

constexpr int64_t GRANULE = 32;

inline int64_t granules_of(int64_t keys) { return (keys + GRANULE - 1) / GRANULE; }

// The packed keys of one (batch, key/value head).
struct PackedHead {
  char* memory = nullptr;    // granules one after the other
  int32_t* state = nullptr;  // per granule: 0 untouched, 1 somebody packs it, 2 ready
};

// Where the granules of all heads lie. Those of a packed batch follow their rows; a sequence begins
// at most one granule later than its rows do per sequence before it, so none overlaps the next.
struct PackedLayout {
  const AttentionParams& params;
  int64_t granule_bytes;
  int64_t per_head;  // granules, of all sequences if the batch is packed
  bool packed_batch;

  PackedLayout(const AttentionParams& p, int64_t bytes)
      : params(p), granule_bytes(bytes), packed_batch(p.cu_seqlens_k != nullptr) {
    per_head = packed_batch ? p.total_k / GRANULE + p.batch + 1 : granules_of(p.len_k);
  }
  int64_t granules() const {
    return per_head * params.heads_kv * (packed_batch ? 1 : params.batch);
  }
  PackedHead head(char* memory, int32_t* state, int64_t b, int64_t h_kv) const {
    const int64_t head = packed_batch ? h_kv : b * params.heads_kv + h_kv;
    const int64_t inside = packed_batch ? params.cu_seqlens_k[b] / GRANULE + b : 0;
    const int64_t first = head * per_head + inside;
    return {memory + first * granule_bytes, state + first};
  }
};

}  // namespace fused_attention::cpu
