// The operators of additive attention in the CPU library.
#include "additive_binding.h"

#include <string>

#include "cpu/additive/launch.h"
#include "cpu_binding.h"

namespace {

using namespace fused_attention::binding;
using fused_attention::AdditiveBackwardParams;

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
  const AdditiveBackwardParams params = additive_backward_params_of(
      in, out, lse, grad_out, grad_lse, grad_query, grad_key, grad_value, grad_v);
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
