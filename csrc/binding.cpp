// The operators of the CPU library.
#include "binding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "fused_attention/launch.h"

namespace {

using fused_attention::BackwardParams;
using namespace fused_attention::binding;

void run_on_torch_threads(void*, int workers, void (*body)(void*, int), void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
  });
}

fused_attention::cpu::ThreadPool torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()), run_on_torch_threads, nullptr};
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

std::string cpu_isas() { return fused_attention::cpu::available_isas(); }

}  // namespace

#define SHARED_ARGUMENTS                                                                        \
  "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, " \
  "Tensor? kv_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? band_offsets, "      \
  "Tensor? rng_state, float scale, float softcap, int left, int right, int offset, "            \
  "float dropout_p, str isa, "

STABLE_TORCH_LIBRARY_FRAGMENT(fused_attention, m) {
  m.def("cpu_forward(" SHARED_ARGUMENTS "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("cpu_backward(" SHARED_ARGUMENTS
        "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor(a!) key_sum, "
        "Tensor(b!) value_sum, Tensor(c!) delta, Tensor(d!) grad_query, Tensor(e!) grad_key, "
        "Tensor(f!) grad_value, Tensor(g!)? grad_bias) -> ()");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fused_attention, CPU, m) {
  m.impl("cpu_forward", TORCH_BOX(&cpu_forward));
  m.impl("cpu_backward", TORCH_BOX(&cpu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fused_attention, CompositeExplicitAutograd, m) {
  m.impl("cpu_isas", TORCH_BOX(&cpu_isas));
}
