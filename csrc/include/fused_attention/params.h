#pragma once

#include <cstdint>

#include "fused_attention/band.h"
#include "fused_attention/philox.h"

namespace fused_attention {

enum class DType : int32_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

// A tensor [batch, heads, length, dim] by its element strides; the last dimension is contiguous.
// Packed tensors [total, heads, dim] have batch = 0: the sequence's first row replaces it.
struct Operand {
  void* data = nullptr;
  int64_t batch = 0;
  int64_t head = 0;
  int64_t row = 0;
};

// One value per query row: lse, delta, grad_lse. [B, H, L], packed [H, total]; fp32 (fp64 for
// fp64).
struct RowVector {
  void* data = nullptr;  // nullptr: absent
  int64_t batch = 0;
  int64_t head = 0;
  int64_t row = 0;
};

// Additive bias or its gradient, [B|1, H|1, Lq|1, Lk|1]; broadcast dimensions have stride 0.
struct Bias {
  void* data = nullptr;  // nullptr: absent
  DType dtype = DType::FLOAT32;
  int64_t size[4] = {1, 1, 1, 1};
  int64_t stride[4] = {0, 0, 0, 0};
};

// One attention problem as plain pointers; every backend's kernels take it.
struct AttentionParams {
  DType dtype = DType::FLOAT32;
  int64_t batch = 0;  // packed: number of sequences
  int64_t heads_q = 0, heads_kv = 0;
  int64_t len_q = 0, len_k = 0;      // packed: the longest sequence's
  int64_t total_q = 0, total_k = 0;  // packed: rows of the tensors
  int64_t head_dim = 0, value_dim = 0;
  Operand query, key, value, out;
  RowVector lse;
  const int32_t* kv_lengths = nullptr;    // [batch]
  const int32_t* cu_seqlens_q = nullptr;  // [batch + 1]; nullptr: dense
  const int32_t* cu_seqlens_k = nullptr;  // [batch + 1]
  const int32_t* band_offsets = nullptr;  // [batch]; replaces band.offset
  Band band;
  double scale = 1.0;
  double softcap = 0.0;  // 0: none
  Bias bias;
  const float* alibi_slopes = nullptr;  // [heads_q], or [batch, heads_q] with alibi_batch = heads_q
  int64_t alibi_batch = 0;
  const void* sinks = nullptr;  // [heads_q] in the accumulation type
  Dropout dropout;
};

struct BackwardParams {
  AttentionParams forward;  // with out and lse of the forward (or a global merge of several)
  Operand grad_out, grad_query, grad_key, grad_value;
  RowVector grad_lse;  // absent: zero
  RowVector delta;     // written: rowsum(dO * O) - dLSE
  Bias grad_bias;      // absent: not wanted
  // Accumulation type, rows padded: dK and dV grow here in a fixed order. The launch fills them in.
  Operand key_sum, value_sum;
};

// One step of decoding: few queries per sequence against a cache that grows in place.
struct DecodeParams {
  // query [B, Hq, Lq, D], out, lse, sinks, ALiBi, softcap and band, whose offset is replaced: each
  // row has its own diagonal, bottom-right of its length after the append, or by band_offsets where
  // an attention of few queries is computed like a step of decoding. key and value are the
  // caches. Contiguous: Operand.batch steps cache rows. Paged: Operand.batch steps pages,
  // Operand.row steps rows of a page. len_k: the longest cache that fits.
  AttentionParams attention;
  const int32_t* cache_lengths = nullptr;  // [B] keys in the cache before this call
  const int32_t* cache_batch = nullptr;    // [B] row of a contiguous cache; nullptr: b
  const int32_t* cache_starts = nullptr;   // [B] first valid key (left padding); nullptr: 0
  const int32_t* block_table = nullptr;    // [B, max_pages] page numbers; nullptr: contiguous
  int64_t block_table_row = 0, page_size = 0;
  // [B, Hkv, len_new, *], appended at cache_lengths before attending; data nullptr: nothing
  Operand new_key, new_value;
  int64_t len_new = 0;
  // [positions, rotary_dim / 2] in rotary_dtype, which is the query's dtype or fp32; they rotate
  // query i and new key i at position cache_lengths[b] + i. nullptr: no rotation
  const void* rotary_cos = nullptr;
  const void* rotary_sin = nullptr;
  DType rotary_dtype = DType::FLOAT32;
  int64_t rotary_dim = 0;
  bool rotary_interleaved = false;
  int64_t splits = 0;  // parts of the keys worked on at once; 0: the launch decides
  // The size of a part depends on key position alone, so that a row's result does not depend on
  // what else is in the batch.
  bool batch_invariant = false;
  void* workspace = nullptr;  // partial out and lse; its size by decode_workspace_bytes(params)
  int64_t workspace_bytes = 0;
};

// Where batch b's rows lie and how far they reach.
struct Sequence {
  int64_t q_start = 0, k_start = 0;  // first row in a packed tensor
  int64_t len_q = 0, len_k = 0;      // len_k is clipped by kv_lengths
  Band band;
};

FUSED_ATTENTION_HOST_DEVICE inline Sequence sequence_of(const AttentionParams& params, int64_t b) {
  Sequence seq;
  seq.len_q = params.len_q;
  seq.len_k = params.len_k;
  if (params.cu_seqlens_q != nullptr) {
    seq.q_start = params.cu_seqlens_q[b];
    seq.k_start = params.cu_seqlens_k[b];
    seq.len_q = params.cu_seqlens_q[b + 1] - seq.q_start;
    seq.len_k = params.cu_seqlens_k[b + 1] - seq.k_start;
  }
  if (params.kv_lengths != nullptr && params.kv_lengths[b] < seq.len_k) {
    seq.len_k = params.kv_lengths[b];
  }
  seq.band = params.band;
  if (params.band_offsets != nullptr) seq.band.offset = params.band_offsets[b];
  return seq;
}

}  // namespace fused_attention
