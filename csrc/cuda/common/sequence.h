#pragma once

#include <cstdint>

#include "fused_attention/params.h"

namespace fused_attention::cuda {

// sequence_of with what the host cannot check without waiting for the device: sequences are clipped
// to the packed tensors, lengths to 0, so that wrong numbers give wrong results and nothing worse.
//
// b == params.batch stands for the rows behind the last sequence. They belong to nobody, see
// nothing and are written like all others.
FUSED_ATTENTION_HOST_DEVICE inline Sequence clipped_sequence(const AttentionParams& params,
                                                             int64_t b) {
  const auto clip = [](int64_t x, int64_t most) { return x < 0 ? 0 : x > most ? most : x; };
  Sequence seq;
  if (b < params.batch) {
    seq = sequence_of(params, b);
  } else {
    seq.q_start = params.cu_seqlens_q[b];
    seq.k_start = params.cu_seqlens_k[b];
    seq.len_q = params.total_q;
    seq.band = params.band;
  }
  if (params.cu_seqlens_q != nullptr) {
    seq.q_start = clip(seq.q_start, params.total_q);
    seq.k_start = clip(seq.k_start, params.total_k);
    seq.len_q = clip(seq.len_q, params.total_q - seq.q_start);
    seq.len_k = clip(seq.len_k, params.total_k - seq.k_start);
  }
  if (seq.len_k < 0) seq.len_k = 0;
  return seq;
}

// Rows that a sequence has in the key tensors: those behind its kv_length, too.
FUSED_ATTENTION_HOST_DEVICE inline int64_t key_rows(const AttentionParams& params, int64_t b,
                                                    const Sequence& seq) {
  if (params.cu_seqlens_k == nullptr) return params.len_k;
  const int64_t behind = params.total_k - seq.k_start;
  if (b == params.batch) return behind;
  const int64_t rows = params.cu_seqlens_k[b + 1] - seq.k_start;
  return rows < 0 ? 0 : rows < behind ? rows : behind;
}

}  // namespace fused_attention::cuda
