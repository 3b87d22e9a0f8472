#pragma once

// Tensor -> params of additive attention, for the bindings of both libraries.
#include "binding.h"
#include "fused_attention/additive_params.h"

namespace fused_attention::binding {

// The arguments that forward and backward share, in the operators' order.
struct AdditiveShared {
  const Tensor &query, &key, &value, &v;
  const OptionalTensor& key_lengths;
  int64_t left, right, offset;
};

inline AdditiveParams additive_params_of(const AdditiveShared& in, const Tensor& out,
                                         const Tensor& lse) {
  const OptionalTensor none;
  const Shared attention{in.query, in.key,    in.value, none, none, none, in.key_lengths,
                         none,     none,      none,     none, 1.0,  0.0,  in.left,
                         in.right, in.offset, 0.0};
  STD_TORCH_CHECK(in.v.is_contiguous() && dtype_of(in.v) == dtype_of(lse),
                  "fused_attention: v must be contiguous and of the lse's dtype");
  return {params_of(attention, out, lse), in.v.data_ptr()};
}

inline AdditiveBackwardParams additive_backward_params_of(
    const AdditiveShared& in, const Tensor& out, const Tensor& lse, const Tensor& grad_out,
    const OptionalTensor& grad_lse, const OptionalTensor& grad_query,
    const OptionalTensor& grad_key, const OptionalTensor& grad_value,
    const OptionalTensor& grad_v) {
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
  return params;
}

}  // namespace fused_attention::binding
