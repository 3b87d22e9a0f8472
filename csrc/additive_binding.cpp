// The operators of additive attention in the CPU library.
#include <string>

#include "cpu/additive/launch.h"
#include "cpu_binding.h"

namespace {

using namespace fused_attention::binding;
using fused_attention::AdditiveBackwardParams;
using fused_attention::AdditiveParams;

// The arguments that forward and backward share, in the operators' order.
struct AdditiveShared {
  const Tensor &query, &key, &value, &v;
  const OptionalTensor& key_lengths;
  int64_t left, right, offset;
};

AdditiveParams additive_params_of(const AdditiveShared& in, const Tensor& out, const Tensor& lse) {
  const OptionalTensor none;
  const Shared attention{in.query, in.key,    in.value, none, none, none, in.key_lengths,
                         none,     none,      none,     none, 1.0,  0.0,  in.left,
                         in.right, in.offset, 0.0};
  STD_TORCH_CHECK(in.v.is_contiguous() && dtype_of(in.v) == dtype_of(lse),
                  "fused_attention: v must be contiguous and of the lse's dtype");
  return {params_of(attention, out, lse), in.v.data_ptr()};
}

void cpu_additive_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                          const Tensor& v, OptionalTensor key_lengths, int64_t left, int64_t right,
                          int64_t offset, std::string isa, Tensor out, Tensor lse) {
  const AdditiveShared in{query, key, value, v, key_lengths, left, right, offset};
  raise_if_error(fused_attention::cpu::launch_additive_forward(additive_params_of(in, out, lse),
                                                               isa.c_str(), torch_threads()));
}

void cpu_additive_backward(const Tensor& query, const Tensor& key, const Tensor& value,
                           const Tensor& v, OptionalTensor key_lengths, int64_t left, int64_t right,
                           int64_t offset, std::string isa, const Tensor& out, const Tensor& lse,
                           const Tensor& grad_out, OptionalTensor grad_lse,
                           OptionalTensor grad_query, OptionalTensor grad_key,
                           OptionalTensor grad_value, OptionalTensor grad_v) {
  const AdditiveShared in{query, key, value, v, key_lengths, left, right, offset};
  const AdditiveParams forward = additive_params_of(in, out, lse);
  AdditiveBackwardParams params;
  params.attention.forward = forward.attention;
  params.attention.grad_out = operand(grad_out);
  if (grad_lse) params.attention.grad_lse = row_vector(*grad_lse);
  if (grad_query) params.attention.grad_query = operand(*grad_query);
  if (grad_key) params.attention.grad_key = operand(*grad_key);
  if (grad_value) params.attention.grad_value = operand(*grad_value);
  params.v = forward.v;
  params.grad_v = grad_v ? grad_v->data_ptr() : nullptr;
  raise_if_error(
      fused_attention::cpu::launch_additive_backward(params, isa.c_str(), torch_threads()));
}

}  // namespace

#define ADDITIVE_ARGUMENTS                                                                \
  "Tensor query, Tensor key, Tensor value, Tensor v, Tensor? key_lengths, int left, int " \
  "right, int offset, str isa, "

STABLE_TORCH_LIBRARY_FRAGMENT(FUSED_ATTENTION_OPERATORS, m) {
  m.def("cpu_additive_forward(" ADDITIVE_ARGUMENTS "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("cpu_additive_backward(" ADDITIVE_ARGUMENTS
        "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor(a!)? grad_query, "
        "Tensor(b!)? grad_key, Tensor(c!)? grad_value, Tensor(d!)? grad_v) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FUSED_ATTENTION_OPERATORS, CPU, m) {
  m.impl("cpu_additive_forward", TORCH_BOX(&cpu_additive_forward));
  m.impl("cpu_additive_backward", TORCH_BOX(&cpu_additive_backward));
}
