// The operators of the CUDA library. It loads beside a torch without CUDA and without a driver.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cuda/decode/launch.h"
#include "cuda/device.h"
#include "cuda/sm80/launch.h"
#include "cuda_binding.h"

namespace {

using fused_attention::AttentionParams;
using fused_attention::BackwardParams;
using fused_attention::DecodeParams;
using namespace fused_attention::binding;

// The host cannot look into cu_seqlens: the longest sequences are told.
AttentionParams bounded_params(const Shared& in, int64_t max_seqlen_q, int64_t max_seqlen_k,
                               const Tensor& out, const Tensor& lse) {
  AttentionParams params = params_of(in, out, lse);
  if (in.cu_seqlens_q) {
    params.len_q = max_seqlen_q;
    params.len_k = max_seqlen_k;
  }
  return params;
}

void sm80_forward(const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
                  OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor kv_lengths,
                  OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                  OptionalTensor band_offsets, OptionalTensor rng_state, int64_t max_seqlen_q,
                  int64_t max_seqlen_k, double scale, double softcap, int64_t left, int64_t right,
                  int64_t offset, double dropout_p, Tensor out, Tensor lse) {
  const Shared in{query,      key,          value,        bias,         alibi_slopes, sinks,
                  kv_lengths, cu_seqlens_q, cu_seqlens_k, band_offsets, rng_state,    scale,
                  softcap,    left,         right,        offset,       dropout_p};
  const DeviceGuard guard(query.get_device_index());
  const AttentionParams params = bounded_params(in, max_seqlen_q, max_seqlen_k, out, lse);
  raise_if_error(fused_attention::cuda::sm80::launch_forward(params, current_stream(query)));
}

void sm80_backward(const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
                   OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor kv_lengths,
                   OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                   OptionalTensor band_offsets, OptionalTensor rng_state, int64_t max_seqlen_q,
                   int64_t max_seqlen_k, double scale, double softcap, int64_t left, int64_t right,
                   int64_t offset, double dropout_p, const Tensor& out, const Tensor& lse,
                   const Tensor& grad_out, OptionalTensor grad_lse, Tensor delta, Tensor grad_query,
                   Tensor grad_key, Tensor grad_value) {
  const Shared in{query,      key,          value,        bias,         alibi_slopes, sinks,
                  kv_lengths, cu_seqlens_q, cu_seqlens_k, band_offsets, rng_state,    scale,
                  softcap,    left,         right,        offset,       dropout_p};
  const DeviceGuard guard(query.get_device_index());
  BackwardParams params;
  params.forward = bounded_params(in, max_seqlen_q, max_seqlen_k, out, lse);
  params.grad_out = operand(grad_out);
  params.grad_query = operand(grad_query);
  params.grad_key = operand(grad_key);
  params.grad_value = operand(grad_value);
  if (grad_lse) params.grad_lse = row_vector(*grad_lse);
  params.delta = row_vector(delta);
  raise_if_error(fused_attention::cuda::sm80::launch_backward(params, current_stream(query)));
}

void decode(const Tensor& query, Tensor key_cache, Tensor value_cache, OptionalTensor key,
            OptionalTensor value, const Tensor& cache_lengths, OptionalTensor cache_batch,
            OptionalTensor cache_starts, OptionalTensor block_table, OptionalTensor rotary_cos,
            OptionalTensor rotary_sin, OptionalTensor alibi_slopes, OptionalTensor sinks,
            double scale, double softcap, int64_t left, int64_t right, bool rotary_interleaved,
            int64_t splits, bool batch_invariant, Tensor out, Tensor lse) {
  const DecodeStep in{
      query,       key_cache,      value_cache, key,        value,      cache_lengths,
      cache_batch, cache_starts,   block_table, rotary_cos, rotary_sin, alibi_slopes,
      sinks,       scale,          softcap,     left,       right,      rotary_interleaved,
      splits,      batch_invariant};
  const DeviceGuard guard(query.get_device_index());
  DecodeParams params = decode_params_of(in, out, lse);
  raise_if_error(fused_attention::cuda::decode_workspace_bytes(params, &params.workspace_bytes));
  const Tensor workspace = workspace_of(query, params.workspace_bytes);
  params.workspace = workspace.data_ptr();
  raise_if_error(fused_attention::cuda::launch_decode(params, current_stream(query)));
}

// Why the driver cannot run the library; empty if it can.
std::string driver_error() {
  const fused_attention::Status status = fused_attention::cuda::driver_status();
  return status.ok ? "" : status.message;
}

}  // namespace

#define SHARED_ARGUMENTS                                                                        \
  "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, " \
  "Tensor? kv_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? band_offsets, "      \
  "Tensor? rng_state, int max_seqlen_q, int max_seqlen_k, float scale, float softcap, "         \
  "int left, int right, int offset, float dropout_p, "

STABLE_TORCH_LIBRARY_FRAGMENT(fused_attention, m) {
  m.def("cuda_sm80_forward(" SHARED_ARGUMENTS "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("cuda_sm80_backward(" SHARED_ARGUMENTS
        "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor(a!) delta, "
        "Tensor(b!) grad_query, Tensor(c!) grad_key, Tensor(d!) grad_value) -> ()");
  m.def(
      "cuda_decode(Tensor query, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor? key, "
      "Tensor? value, Tensor cache_lengths, Tensor? cache_batch, Tensor? cache_starts, "
      "Tensor? block_table, Tensor? rotary_cos, Tensor? rotary_sin, Tensor? alibi_slopes, "
      "Tensor? sinks, float scale, float softcap, int left, int right, bool rotary_interleaved, "
      "int splits, bool batch_invariant, Tensor(c!) out, Tensor(d!) lse) -> ()");
  m.def("cuda_driver_error() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fused_attention, CUDA, m) {
  m.impl("cuda_sm80_forward", TORCH_BOX(&sm80_forward));
  m.impl("cuda_sm80_backward", TORCH_BOX(&sm80_backward));
  m.impl("cuda_decode", TORCH_BOX(&decode));
}

STABLE_TORCH_LIBRARY_IMPL(fused_attention, CompositeExplicitAutograd, m) {
  m.impl("cuda_driver_error", TORCH_BOX(&driver_error));
}
