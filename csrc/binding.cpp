// The operators of the CPU library.
#include "cpu_binding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <memory>
#include <string>
#include <tuple>

namespace {

using fused_attention::BackwardParams;
using namespace fused_attention::binding;

void cpu_forward(const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
                 OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor kv_lengths,
                 OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                 OptionalTensor band_offsets, OptionalTensor rng_state, double scale,
                 double softcap, int64_t left, int64_t right, int64_t offset, double dropout_p,
                 std::string isa, bool backward_follows, Tensor out, Tensor lse) {
  const Shared in{query,      key,          value,        bias,         alibi_slopes, sinks,
                  kv_lengths, cu_seqlens_q, cu_seqlens_k, band_offsets, rng_state,    scale,
                  softcap,    left,         right,        offset,       dropout_p};
  raise_if_error(fused_attention::cpu::launch_forward(params_of(in, out, lse), backward_follows,
                                                      isa.c_str(), torch_threads()));
}

bool is_index(int64_t length) { return length < fused_attention::BAND_UNBOUNDED; }

// What problem.py checks, of a call that has nothing but its operands, a band and a scale. Whatever
// is refused here is told or served by the long way.
void check_plain(const Tensor& query, const Tensor& key, const Tensor& value) {
  constexpr int64_t MAX_HEAD_DIM = 512, MAX_BATCH_HEADS = int64_t{1} << 31;
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4 && query.is_cpu() &&
                      key.is_cpu() && value.is_cpu() && key.scalar_type() == query.scalar_type() &&
                      value.scalar_type() == query.scalar_type(),
                  "fused_attention: not three tensors of a kind");
  const int64_t batch = query.size(0), heads_q = query.size(1), heads_kv = key.size(1);
  const int64_t dim = query.size(3);
  STD_TORCH_CHECK(key.size(0) == batch && value.size(0) == batch && heads_kv > 0 && heads_q > 0 &&
                      heads_q % heads_kv == 0 && value.size(1) == heads_kv &&
                      batch * heads_q < MAX_BATCH_HEADS && is_index(query.size(2)) &&
                      is_index(key.size(2)) && value.size(2) == key.size(2) && dim > 0 &&
                      dim <= MAX_HEAD_DIM && key.size(3) == dim && value.size(3) == dim,
                  "fused_attention: the shapes do not fit");
}

const OptionalTensor NONE;

// A plain call, checked, as the general operators have it.
Shared plain_call(const Tensor& query, const Tensor& key, const Tensor& value,
                  std::optional<double> scale, int64_t left, int64_t right,
                  std::optional<int64_t> offset) {
  check_plain(query, key, value);
  const double factor = scale ? *scale : std::pow(static_cast<double>(query.size(3)), -0.5);
  STD_TORCH_CHECK(std::isfinite(factor), "fused_attention: the scale is not finite");
  const int64_t diagonal = offset ? *offset : key.size(2) - query.size(2);
  return {query, key,  value,  NONE, NONE, NONE,  NONE,     NONE, NONE,
          NONE,  NONE, factor, 0.0,  left, right, diagonal, 0.0};
}

// All but delta.
BackwardParams backward_params_of(const Shared& in, const Tensor& out, const Tensor& lse,
                                  const Tensor& grad_out, const OptionalTensor& grad_lse,
                                  const Tensor& grad_query, const Tensor& grad_key,
                                  const Tensor& grad_value) {
  BackwardParams params;
  params.forward = params_of(in, out, lse);
  params.grad_out = operand(grad_out);
  params.grad_query = operand(grad_query);
  params.grad_key = operand(grad_key);
  params.grad_value = operand(grad_value);
  if (grad_lse) params.grad_lse = row_vector(*grad_lse);
  return params;
}

// A whole call: checks, results and kernel, for problems that take less time than their checks in
// Python. out and lse.
std::tuple<Tensor, Tensor> cpu_attention(const Tensor& query, const Tensor& key,
                                         const Tensor& value, std::optional<double> scale,
                                         int64_t left, int64_t right, std::optional<int64_t> offset,
                                         std::string isa, bool backward_follows) {
  const Shared in = plain_call(query, key, value, scale, left, right, offset);
  const bool wide = dtype_of(query) == fused_attention::DType::FLOAT64;
  Tensor out = torch::stable::empty_like(query);
  Tensor lse = torch::stable::new_empty(
      query, {query.size(0), query.size(1), query.size(2)},
      wide ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float);
  raise_if_error(fused_attention::cpu::launch_forward(params_of(in, out, lse), backward_follows,
                                                      isa.c_str(), torch_threads()));
  return {out, lse};
}

// Its gradients; the arguments are those of such a call and its results.
std::tuple<Tensor, Tensor, Tensor> cpu_attention_backward(
    const Tensor& grad_out, OptionalTensor grad_lse, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& out, const Tensor& lse, std::optional<double> scale,
    int64_t left, int64_t right, std::optional<int64_t> offset, std::string isa) {
  const Shared in = plain_call(query, key, value, scale, left, right, offset);
  Tensor grad_query = torch::stable::empty_like(query), grad_key = torch::stable::empty_like(key),
         grad_value = torch::stable::empty_like(value);
  BackwardParams params =
      backward_params_of(in, out, lse, grad_out, grad_lse, grad_query, grad_key, grad_value);
  const std::unique_ptr<char[]> delta(new char[lse.numel() * lse.element_size()]);
  const int64_t rows = lse.size(2);
  params.delta = {delta.get(), lse.size(1) * rows, rows, 1};
  raise_if_error(fused_attention::cpu::launch_backward(params, isa.c_str(), torch_threads()));
  return {grad_query, grad_key, grad_value};
}

void cpu_backward(const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
                  OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor kv_lengths,
                  OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                  OptionalTensor band_offsets, OptionalTensor rng_state, double scale,
                  double softcap, int64_t left, int64_t right, int64_t offset, double dropout_p,
                  std::string isa, const Tensor& out, const Tensor& lse, const Tensor& grad_out,
                  OptionalTensor grad_lse, Tensor delta, Tensor grad_query, Tensor grad_key,
                  Tensor grad_value, OptionalTensor grad_bias) {
  const Shared in{query,      key,          value,        bias,         alibi_slopes, sinks,
                  kv_lengths, cu_seqlens_q, cu_seqlens_k, band_offsets, rng_state,    scale,
                  softcap,    left,         right,        offset,       dropout_p};
  BackwardParams params =
      backward_params_of(in, out, lse, grad_out, grad_lse, grad_query, grad_key, grad_value);
  params.delta = row_vector(delta);
  params.grad_bias = bias_of(grad_bias);
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
  const DecodeStep in{
      query,       key_cache,      value_cache, key,        value,      cache_lengths,
      cache_batch, cache_starts,   block_table, rotary_cos, rotary_sin, alibi_slopes,
      sinks,       scale,          softcap,     left,       right,      rotary_interleaved,
      splits,      batch_invariant};
  fused_attention::DecodeParams p = decode_params_of(in, out, lse);
  if (block_table) check_pages(p, key_cache.size(0), p.block_table_row);
  p.workspace_bytes = fused_attention::cpu::decode_workspace_bytes(p, isa.c_str());
  const std::unique_ptr<char[]> workspace(new char[p.workspace_bytes]);
  p.workspace = workspace.get();
  raise_if_error(fused_attention::cpu::launch_decode(p, isa.c_str(), torch_threads()));
}

double cpu_peak(const Tensor& like, int64_t rounds, std::string isa) {
  double flops = 0;
  raise_if_error(fused_attention::cpu::launch_peak(dtype_of(like), rounds, isa.c_str(),
                                                   torch_threads(), &flops));
  return flops;
}

int64_t cpu_read(const Tensor& data) {
  uint64_t found = 0;
  STD_TORCH_CHECK(data.is_contiguous(), "fused_attention: data must be contiguous");
  raise_if_error(fused_attention::cpu::launch_read(
      data.data_ptr(), data.numel() * data.element_size(), torch_threads(), &found));
  return static_cast<int64_t>(found);
}

std::string cpu_isas() { return fused_attention::cpu::available_isas(); }

}  // namespace

#define SHARED_ARGUMENTS                                                                        \
  "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, " \
  "Tensor? kv_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? band_offsets, "      \
  "Tensor? rng_state, float scale, float softcap, int left, int right, int offset, "            \
  "float dropout_p, str isa, "

STABLE_TORCH_LIBRARY_FRAGMENT(FUSED_ATTENTION_OPERATORS, m) {
  m.def(
      "cpu_attention(Tensor query, Tensor key, Tensor value, float? scale, int left, int right, "
      "int? offset, str isa, bool backward_follows) -> (Tensor out, Tensor lse)");
  m.def(
      "cpu_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, "
      "Tensor value, Tensor out, Tensor lse, float? scale, int left, int right, int? offset, "
      "str isa) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)");
  m.def("cpu_forward(" SHARED_ARGUMENTS
        "bool backward_follows, Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("cpu_backward(" SHARED_ARGUMENTS
        "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor(a!) delta, "
        "Tensor(b!) grad_query, Tensor(c!) grad_key, Tensor(d!) grad_value, "
        "Tensor(e!)? grad_bias) -> ()");
  m.def(
      "cpu_decode(Tensor query, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor? key, "
      "Tensor? value, Tensor cache_lengths, Tensor? cache_batch, Tensor? cache_starts, "
      "Tensor? block_table, Tensor? rotary_cos, Tensor? rotary_sin, Tensor? alibi_slopes, "
      "Tensor? sinks, float scale, float softcap, int left, int right, bool rotary_interleaved, "
      "int splits, bool batch_invariant, str isa, Tensor(c!) out, Tensor(d!) lse) -> ()");
  m.def("cpu_peak(Tensor like, int rounds, str isa) -> float");
  m.def("cpu_read(Tensor data) -> int");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(FUSED_ATTENTION_OPERATORS, CPU, m) {
  m.impl("cpu_attention", TORCH_BOX(&cpu_attention));
  m.impl("cpu_attention_backward", TORCH_BOX(&cpu_attention_backward));
  m.impl("cpu_forward", TORCH_BOX(&cpu_forward));
  m.impl("cpu_backward", TORCH_BOX(&cpu_backward));
  m.impl("cpu_decode", TORCH_BOX(&cpu_decode));
  m.impl("cpu_peak", TORCH_BOX(&cpu_peak));
  m.impl("cpu_read", TORCH_BOX(&cpu_read));
}

STABLE_TORCH_LIBRARY_IMPL(FUSED_ATTENTION_OPERATORS, CompositeExplicitAutograd, m) {
  m.impl("cpu_isas", TORCH_BOX(&cpu_isas));
}
