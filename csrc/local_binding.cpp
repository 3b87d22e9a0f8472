// The operators fused_attention::cpu_local_forward and fused_attention::cpu_local_backward.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu_binding.h"
#include "fused_attention/local_launch.h"

namespace {

using fused_attention::LocalBackwardParams;
using fused_attention::LocalParams;
using namespace fused_attention::binding;

// The arguments that forward and backward share, in the operators' order.
struct LocalShared {
  const Tensor &query, &key, &value, &position;
  const OptionalTensor &sigma, &key_lengths;
  double width, fixed_sigma, scale;
  bool log_bias;
};

LocalParams local_params_of(const LocalShared& in, const Tensor& out, const Tensor& lse) {
  LocalParams p;
  p.dtype = dtype_of(in.query);
  p.batch = in.query.size(0);
  p.heads_q = in.query.size(1);
  p.heads_kv = in.key.size(1);
  p.len_q = in.query.size(2);
  p.len_k = in.key.size(2);
  p.head_dim = in.query.size(3);
  p.value_dim = in.value.size(3);
  p.query = operand(in.query);
  p.key = operand(in.key);
  p.value = operand(in.value);
  p.out = operand(out);
  p.lse = row_vector(lse);
  STD_TORCH_CHECK(
      dtype_of(in.position) == dtype_of(lse) && (!in.sigma || dtype_of(*in.sigma) == dtype_of(lse)),
      "fused_attention: position and sigma must have the lse's dtype");
  p.position = row_vector(in.position);
  if (in.sigma) p.sigma = row_vector(*in.sigma);
  p.key_lengths = int32_data(in.key_lengths);
  p.width = in.width;
  p.fixed_sigma = in.fixed_sigma;
  p.scale = in.scale;
  p.log_bias = in.log_bias;
  return p;
}

void cpu_local_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                       const Tensor& position, OptionalTensor sigma, OptionalTensor key_lengths,
                       double width, double fixed_sigma, double scale, bool log_bias,
                       std::string isa, Tensor out, Tensor lse) {
  const LocalShared in{query,       key,   value,       position, sigma,
                       key_lengths, width, fixed_sigma, scale,    log_bias};
  raise_if_error(fused_attention::cpu::launch_local_forward(local_params_of(in, out, lse),
                                                            isa.c_str(), torch_threads()));
}

void cpu_local_backward(const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& position, OptionalTensor sigma, OptionalTensor key_lengths,
                        double width, double fixed_sigma, double scale, bool log_bias,
                        std::string isa, const Tensor& out, const Tensor& lse,
                        const Tensor& grad_out, OptionalTensor grad_lse, Tensor delta,
                        Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_position,
                        OptionalTensor grad_sigma) {
  const LocalShared in{query,       key,   value,       position, sigma,
                       key_lengths, width, fixed_sigma, scale,    log_bias};
  LocalBackwardParams params;
  params.forward = local_params_of(in, out, lse);
  params.grad_out = operand(grad_out);
  params.grad_query = operand(grad_query);
  params.grad_key = operand(grad_key);
  params.grad_value = operand(grad_value);
  if (grad_lse) params.grad_lse = row_vector(*grad_lse);
  params.delta = row_vector(delta);
  params.grad_position = row_vector(grad_position);
  if (grad_sigma) params.grad_sigma = row_vector(*grad_sigma);
  raise_if_error(fused_attention::cpu::launch_local_backward(params, isa.c_str(), torch_threads()));
}

}  // namespace

#define LOCAL_ARGUMENTS                                                                           \
  "Tensor query, Tensor key, Tensor value, Tensor position, Tensor? sigma, Tensor? key_lengths, " \
  "float width, float fixed_sigma, float scale, bool log_bias, str isa, "

STABLE_TORCH_LIBRARY_FRAGMENT(FUSED_ATTENTION_OPERATORS, m) {
  m.def("cpu_local_forward(" LOCAL_ARGUMENTS "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("cpu_local_backward(" LOCAL_ARGUMENTS
        "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor(a!) delta, "
        "Tensor(b!) grad_query, Tensor(c!) grad_key, Tensor(d!) grad_value, "
        "Tensor(e!) grad_position, Tensor(f!)? grad_sigma) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FUSED_ATTENTION_OPERATORS, CPU, m) {
  m.impl("cpu_local_forward", TORCH_BOX(&cpu_local_forward));
  m.impl("cpu_local_backward", TORCH_BOX(&cpu_local_backward));
}
