// The only file in csrc that knows torch: Tensor -> params -> launch. LibTorch's stable ABI keeps
// one library good for every torch from 2.11 on; shapes and values have been checked in Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "fused_attention/launch.h"

namespace {

using fused_attention::AttentionParams;
using fused_attention::BackwardParams;
using fused_attention::Bias;
using fused_attention::DType;
using fused_attention::Operand;
using fused_attention::RowVector;
using fused_attention::Status;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& x) {
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

// [B, H, L, D] or, packed, [T, H, D].
Operand operand(const Tensor& x) {
  const bool packed = x.dim() == 3;
  STD_TORCH_CHECK(x.size(x.dim() - 1) <= 1 || x.stride(x.dim() - 1) == 1,
                  "fused_attention: the last dimension must be contiguous");
  if (packed) return {x.data_ptr(), 0, x.stride(1), x.stride(0)};
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

// [B, H, L] or, packed, [H, T].
RowVector row_vector(const Tensor& x) {
  if (x.dim() == 2) return {x.data_ptr(), 0, x.stride(0), x.stride(1)};
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

Bias bias_of(const OptionalTensor& x) {
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

const int32_t* int32_data(const OptionalTensor& x) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->scalar_type() == torch::headeronly::ScalarType::Int && x->is_contiguous(),
                  "fused_attention: integer tensors must be contiguous int32");
  return static_cast<const int32_t*>(x->data_ptr());
}

fused_attention::Dropout dropout_of(double probability, const OptionalTensor& rng_state) {
  fused_attention::Dropout dropout;
  dropout.threshold = static_cast<uint32_t>(std::nearbyint(probability * 65536.0));
  if (dropout.threshold == 0) return dropout;
  STD_TORCH_CHECK(rng_state && rng_state->numel() == 2 && rng_state->is_contiguous() &&
                      rng_state->scalar_type() == torch::headeronly::ScalarType::Long,
                  "fused_attention: dropout needs rng_state, int64 [2]");
  const int64_t* state = static_cast<const int64_t*>(rng_state->data_ptr());
  dropout.seed[0] = static_cast<uint32_t>(state[0]);
  dropout.seed[1] = static_cast<uint32_t>(static_cast<uint64_t>(state[0]) >> 32);
  dropout.offset = static_cast<uint32_t>(state[1]);
  dropout.keep_scale = 1.0 / (1.0 - dropout.threshold / 65536.0);
  return dropout;
}

void run_on_torch_threads(void*, int workers, void (*body)(void*, int), void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
  });
}

fused_attention::cpu::ThreadPool torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()), run_on_torch_threads, nullptr};
}

void raise_if_error(const Status& status) {
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

AttentionParams params_of(const Shared& in, const Tensor& out, const Tensor& lse) {
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

void cpu_forward(const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
                 OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor kv_lengths,
                 OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                 OptionalTensor band_offsets, OptionalTensor rng_state, double scale,
                 double softcap, int64_t left, int64_t right, int64_t offset, double dropout_p,
                 std::string isa, Tensor out, Tensor lse) {
  const Shared in{query,      key,          value,        bias,         alibi_slopes, sinks,
                  kv_lengths, cu_seqlens_q, cu_seqlens_k, band_offsets, rng_state,    scale,
                  softcap,    left,         right,        offset,       dropout_p};
  raise_if_error(
      fused_attention::cpu::launch_forward(params_of(in, out, lse), isa.c_str(), torch_threads()));
}

void cpu_backward(const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
                  OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor kv_lengths,
                  OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                  OptionalTensor band_offsets, OptionalTensor rng_state, double scale,
                  double softcap, int64_t left, int64_t right, int64_t offset, double dropout_p,
                  std::string isa, const Tensor& out, const Tensor& lse, const Tensor& grad_out,
                  OptionalTensor grad_lse, Tensor key_sum, Tensor value_sum, Tensor delta,
                  Tensor grad_query, Tensor grad_key, Tensor grad_value, OptionalTensor grad_bias) {
  const Shared in{query,      key,          value,        bias,         alibi_slopes, sinks,
                  kv_lengths, cu_seqlens_q, cu_seqlens_k, band_offsets, rng_state,    scale,
                  softcap,    left,         right,        offset,       dropout_p};
  BackwardParams params;
  params.forward = params_of(in, out, lse);
  params.grad_out = operand(grad_out);
  params.grad_query = operand(grad_query);
  params.grad_key = operand(grad_key);
  params.grad_value = operand(grad_value);
  if (grad_lse) params.grad_lse = row_vector(*grad_lse);
  params.delta = row_vector(delta);
  params.grad_bias = bias_of(grad_bias);
  params.key_sum = operand(key_sum);
  params.value_sum = operand(value_sum);
  raise_if_error(fused_attention::cpu::launch_backward(params, isa.c_str(), torch_threads()));
}

// Values have been checked; what would read outside of a tensor is refused here once more.
void check_pages(const fused_attention::DecodeParams& p, int64_t pages, int64_t max_pages) {
  for (int64_t b = 0; b < p.attention.batch; ++b) {
    const int64_t length = p.cache_lengths[b] + p.len_new;
    for (int64_t n = 0; n < max_pages && n * p.page_size < length; ++n) {
      const int32_t page = p.block_table[b * p.block_table_row + n];
      STD_TORCH_CHECK(page >= 0 && page < pages, "fused_attention: block_table: no page ", page);
    }
  }
}

void cpu_decode(const Tensor& query, Tensor key_cache, Tensor value_cache, OptionalTensor key,
                OptionalTensor value, const Tensor& cache_lengths, OptionalTensor cache_batch,
                OptionalTensor cache_starts, OptionalTensor block_table, OptionalTensor rotary_cos,
                OptionalTensor rotary_sin, OptionalTensor alibi_slopes, OptionalTensor sinks,
                double scale, double softcap, int64_t left, int64_t right, bool rotary_interleaved,
                int64_t splits, bool batch_invariant, std::string isa, Tensor out, Tensor lse) {
  const OptionalTensor none;
  const Shared in{query, key_cache, value_cache, none,    alibi_slopes, sinks, none, none, none,
                  none,  none,      scale,       softcap, left,         right, 0,    0.0};
  fused_attention::DecodeParams p;
  p.attention = params_of(in, out, lse);
  p.cache_lengths = int32_data(cache_lengths);
  p.cache_batch = int32_data(cache_batch);
  p.cache_starts = int32_data(cache_starts);
  if (key) {
    p.new_key = operand(*key);
    p.new_value = operand(*value);
    p.len_new = key->size(2);
  }
  if (block_table) {
    p.block_table = int32_data(block_table);
    p.block_table_row = block_table->size(1);
    p.page_size = key_cache.size(2);
    p.attention.len_k = p.block_table_row * p.page_size;
    check_pages(p, key_cache.size(0), p.block_table_row);
  }
  if (rotary_cos) {
    p.rotary_cos = rotary_cos->data_ptr();
    p.rotary_sin = rotary_sin->data_ptr();
    p.rotary_dtype = dtype_of(*rotary_cos);
    p.rotary_dim = 2 * rotary_cos->size(1);
    p.rotary_interleaved = rotary_interleaved;
  }
  p.splits = splits;
  p.batch_invariant = batch_invariant;
  p.workspace_bytes = fused_attention::cpu::decode_workspace_bytes(p, isa.c_str());
  const std::unique_ptr<char[]> workspace(new char[p.workspace_bytes]);
  p.workspace = workspace.get();
  raise_if_error(fused_attention::cpu::launch_decode(p, isa.c_str(), torch_threads()));
}

std::string cpu_isas() { return fused_attention::cpu::available_isas(); }

}  // namespace

#define SHARED_ARGUMENTS                                                                        \
  "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, " \
  "Tensor? kv_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? band_offsets, "      \
  "Tensor? rng_state, float scale, float softcap, int left, int right, int offset, "            \
  "float dropout_p, str isa, "

// Tests register a second build beside the installed one.
#if !defined(FUSED_ATTENTION_OPERATORS)
#define FUSED_ATTENTION_OPERATORS fused_attention
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(FUSED_ATTENTION_OPERATORS, m) {
  m.def("cpu_forward(" SHARED_ARGUMENTS "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("cpu_backward(" SHARED_ARGUMENTS
        "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor(a!) key_sum, "
        "Tensor(b!) value_sum, Tensor(c!) delta, Tensor(d!) grad_query, Tensor(e!) grad_key, "
        "Tensor(f!) grad_value, Tensor(g!)? grad_bias) -> ()");
  m.def(
      "cpu_decode(Tensor query, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor? key, "
      "Tensor? value, Tensor cache_lengths, Tensor? cache_batch, Tensor? cache_starts, "
      "Tensor? block_table, Tensor? rotary_cos, Tensor? rotary_sin, Tensor? alibi_slopes, "
      "Tensor? sinks, float scale, float softcap, int left, int right, bool rotary_interleaved, "
      "int splits, bool batch_invariant, str isa, Tensor(c!) out, Tensor(d!) lse) -> ()");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(FUSED_ATTENTION_OPERATORS, CPU, m) {
  m.impl("cpu_forward", TORCH_BOX(&cpu_forward));
  m.impl("cpu_backward", TORCH_BOX(&cpu_backward));
  m.impl("cpu_decode", TORCH_BOX(&cpu_decode));
}

STABLE_TORCH_LIBRARY_IMPL(FUSED_ATTENTION_OPERATORS, CompositeExplicitAutograd, m) {
  m.impl("cpu_isas", TORCH_BOX(&cpu_isas));
}
