#pragma once

// Tensor -> params, for binding.cpp of each library. Shapes and values have been checked in Python;
// LibTorch's stable ABI keeps one library good for every torch from 2.11 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <optional>

#include "fused_attention/params.h"
#include "fused_attention/status.h"

namespace fused_attention::binding {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return DType::FLOAT32;
    case torch::headeronly::ScalarType::Double:
      return DType::FLOAT64;
    case torch::headeronly::ScalarType::BFloat16:
      return DType::BFLOAT16;
    case torch::headeronly::ScalarType::Half:
      return DType::FLOAT16;
    default:
      STD_TORCH_CHECK(false, "fused_attention: dtype is not fp64, fp32, bf16 or fp16");
  }
}

// [B, H, L, D] or, packed, [T, H, D]. Without elements strides mean nothing: torch calls every such
// tensor contiguous.
inline Operand operand(const Tensor& x) {
  const bool packed = x.dim() == 3;
  STD_TORCH_CHECK(x.size(x.dim() - 1) <= 1 || x.stride(x.dim() - 1) == 1 || x.numel() == 0,
                  "fused_attention: the last dimension must be contiguous");
  if (packed) return {x.data_ptr(), 0, x.stride(1), x.stride(0)};
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

// [B, H, L] or, packed, [H, T].
inline RowVector row_vector(const Tensor& x) {
  if (x.dim() == 2) return {x.data_ptr(), 0, x.stride(0), x.stride(1)};
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

inline Bias bias_of(const OptionalTensor& x) {
  Bias bias;
  if (!x) return bias;
  bias.data = x->data_ptr();
  bias.dtype = dtype_of(*x);
  for (int d = 0; d < 4; ++d) {
    bias.size[d] = x->size(d);
    bias.stride[d] = x->size(d) == 1 ? 0 : x->stride(d);
  }
  return bias;
}

inline const int32_t* int32_data(const OptionalTensor& x) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->scalar_type() == torch::headeronly::ScalarType::Int && x->is_contiguous(),
                  "fused_attention: integer tensors must be contiguous int32");
  return static_cast<const int32_t*>(x->data_ptr());
}

inline Dropout dropout_of(double probability, const OptionalTensor& rng_state) {
  Dropout dropout;
  dropout.threshold = static_cast<uint32_t>(std::nearbyint(probability * 65536.0));
  if (dropout.threshold == 0) return dropout;
  STD_TORCH_CHECK(rng_state && rng_state->numel() == 2 && rng_state->is_contiguous() &&
                      rng_state->scalar_type() == torch::headeronly::ScalarType::Long,
                  "fused_attention: dropout needs rng_state, int64 [2]");
  dropout.keep_scale = 1.0 / (1.0 - dropout.threshold / 65536.0);
  dropout.state = static_cast<const int64_t*>(rng_state->data_ptr());
  if (rng_state->is_cpu()) {
    dropout = load_dropout_state(dropout);
    dropout.state = nullptr;
  }
  return dropout;
}

inline void raise_if_error(const Status& status) {
  STD_TORCH_CHECK(status.ok, "fused_attention: ", status.message);
}

// The arguments that forward and backward share, in the operator's order.
struct Shared {
  const Tensor &query, &key, &value;
  const OptionalTensor &bias, &alibi_slopes, &sinks, &kv_lengths, &cu_seqlens_q, &cu_seqlens_k,
      &band_offsets, &rng_state;
  double scale, softcap;
  int64_t left, right, offset;
  double dropout_p;
};

inline AttentionParams params_of(const Shared& in, const Tensor& out, const Tensor& lse) {
  AttentionParams p;
  const bool packed = in.cu_seqlens_q.has_value();
  const int length = packed ? 0 : 2;
  p.dtype = dtype_of(in.query);
  p.batch = packed ? in.cu_seqlens_q->numel() - 1 : in.query.size(0);
  p.heads_q = in.query.size(1);
  p.heads_kv = in.key.size(1);
  p.len_q = p.total_q = in.query.size(length);
  p.len_k = p.total_k = in.key.size(length);
  p.head_dim = in.query.size(length + (packed ? 2 : 1));
  p.value_dim = in.value.size(length + (packed ? 2 : 1));
  p.query = operand(in.query);
  p.key = operand(in.key);
  p.value = operand(in.value);
  p.out = operand(out);
  p.lse = row_vector(lse);
  p.kv_lengths = int32_data(in.kv_lengths);
  p.cu_seqlens_q = int32_data(in.cu_seqlens_q);
  p.cu_seqlens_k = int32_data(in.cu_seqlens_k);
  p.band_offsets = int32_data(in.band_offsets);
  p.band = {in.left, in.right, in.offset};
  p.scale = in.scale;
  p.softcap = in.softcap;
  p.bias = bias_of(in.bias);
  if (in.alibi_slopes) {
    STD_TORCH_CHECK(in.alibi_slopes->scalar_type() == torch::headeronly::ScalarType::Float &&
                        in.alibi_slopes->is_contiguous(),
                    "fused_attention: alibi_slopes must be contiguous fp32");
    p.alibi_slopes = static_cast<const float*>(in.alibi_slopes->data_ptr());
    p.alibi_batch = in.alibi_slopes->dim() == 2 ? p.heads_q : 0;
  }
  if (in.sinks) {
    STD_TORCH_CHECK(dtype_of(*in.sinks) == dtype_of(lse) && in.sinks->is_contiguous(),
                    "fused_attention: sinks must be contiguous and of the lse's dtype");
    p.sinks = in.sinks->data_ptr();
  }
  p.dropout = dropout_of(in.dropout_p, in.rng_state);
  return p;
}

// A step of decoding, in the operator's order.
struct DecodeStep {
  const Tensor &query, &key_cache, &value_cache;
  const OptionalTensor &key, &value;
  const Tensor& cache_lengths;
  const OptionalTensor &cache_batch, &cache_starts, &block_table, &rotary_cos, &rotary_sin,
      &alibi_slopes, &sinks;
  double scale, softcap;
  int64_t left, right;
  bool rotary_interleaved;
  int64_t splits;
  bool batch_invariant;
};

// All but the workspace.
inline DecodeParams decode_params_of(const DecodeStep& in, const Tensor& out, const Tensor& lse) {
  const OptionalTensor none;
  const Shared attention{in.query, in.key_cache, in.value_cache, none,    in.alibi_slopes,
                         in.sinks, none,         none,           none,    none,
                         none,     in.scale,     in.softcap,     in.left, in.right,
                         0,        0.0};
  DecodeParams p;
  p.attention = params_of(attention, out, lse);
  p.cache_lengths = int32_data(in.cache_lengths);
  p.cache_batch = int32_data(in.cache_batch);
  p.cache_starts = int32_data(in.cache_starts);
  if (in.block_table) {
    p.block_table = int32_data(in.block_table);
    p.block_table_row = in.block_table->size(1);
    p.page_size = in.key_cache.size(2);
    p.attention.len_k = p.block_table_row * p.page_size;
  }
  if (in.key) {
    p.new_key = operand(*in.key);
    p.new_value = operand(*in.value);
    p.len_new = in.key->size(2);
  }
  if (in.rotary_cos) {
    STD_TORCH_CHECK(in.rotary_cos->is_contiguous() && in.rotary_sin->is_contiguous(),
                    "fused_attention: rotary_cos and rotary_sin must be contiguous");
    p.rotary_cos = in.rotary_cos->data_ptr();
    p.rotary_sin = in.rotary_sin->data_ptr();
    p.rotary_dtype = dtype_of(*in.rotary_cos);
    p.rotary_dim = 2 * in.rotary_cos->size(1);
    p.rotary_interleaved = in.rotary_interleaved;
  }
  p.splits = in.splits;
  p.batch_invariant = in.batch_invariant;
  return p;
}

}  // namespace fused_attention::binding
