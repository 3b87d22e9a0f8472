// The operator fused_attention::cpu_maps.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu_binding.h"
#include "fused_attention/maps_params.h"

namespace {

using fused_attention::MapsParams;
using namespace fused_attention::binding;

template <class T>
T* result(const OptionalTensor& x) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->is_contiguous(), "fused_attention: results must be contiguous");
  return static_cast<T*>(x->data_ptr());
}

void cpu_maps(const Tensor& query, const Tensor& key, const Tensor& lse, OptionalTensor bias,
              OptionalTensor alibi_slopes, OptionalTensor kv_lengths, OptionalTensor cu_seqlens_q,
              OptionalTensor cu_seqlens_k, OptionalTensor band_offsets, OptionalTensor heads,
              OptionalTensor rows, double scale, double softcap, int64_t left, int64_t right,
              int64_t offset, std::string isa, OptionalTensor weights, OptionalTensor column_mass,
              OptionalTensor entropy, OptionalTensor argmax, OptionalTensor top_weights,
              OptionalTensor top_indices) {
  const OptionalTensor none;
  const Shared in{query,      key,          key,          bias,         alibi_slopes, none,
                  kv_lengths, cu_seqlens_q, cu_seqlens_k, band_offsets, none,         scale,
                  softcap,    left,         right,        offset,       0.0};
  MapsParams m;
  m.attention = params_of(in, query, lse);
  m.heads = int32_data(heads);
  m.head_count = heads ? heads->numel() : m.attention.heads_q;
  m.rows = int32_data(rows);
  m.row_count = rows ? rows->numel() : 0;
  m.weights = result<void>(weights);
  m.column_mass = result<void>(column_mass);
  m.entropy = result<void>(entropy);
  m.argmax = result<int64_t>(argmax);
  if (top_indices) m.top_k = top_indices->size(top_indices->dim() - 1);
  m.top_weights = result<void>(top_weights);
  m.top_indices = result<int64_t>(top_indices);
  raise_if_error(fused_attention::cpu::launch_maps(m, isa.c_str(), torch_threads()));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FUSED_ATTENTION_OPERATORS, m) {
  m.def(
      "cpu_maps(Tensor query, Tensor key, Tensor lse, Tensor? bias, Tensor? alibi_slopes, "
      "Tensor? kv_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? band_offsets, "
      "Tensor? heads, Tensor? rows, float scale, float softcap, int left, int right, int offset, "
      "str isa, Tensor(a!)? weights, Tensor(b!)? column_mass, Tensor(c!)? entropy, "
      "Tensor(d!)? argmax, Tensor(e!)? top_weights, Tensor(f!)? top_indices) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FUSED_ATTENTION_OPERATORS, CPU, m) {
  m.impl("cpu_maps", TORCH_BOX(&cpu_maps));
}
