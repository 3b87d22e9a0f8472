// The operators of additive attention in the CUDA library.
#include "additive_binding.h"

#include "cuda/additive/launch.h"
#include "cuda_binding.h"

namespace {

using namespace fused_attention::binding;
using fused_attention::AdditiveBackwardParams;
using fused_attention::AdditiveParams;
namespace additive = fused_attention::cuda::additive;

void cuda_additive_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                           const Tensor& v, OptionalTensor key_lengths, int64_t left, int64_t right,
                           int64_t offset, Tensor out, Tensor lse) {
  const AdditiveShared in{query, key, value, v, key_lengths, left, right, offset};
  const DeviceGuard guard(query.get_device_index());
  const AdditiveParams params = additive_params_of(in, out, lse);
  int64_t bytes = 0;
  raise_if_error(additive::forward_workspace_bytes(params, &bytes));
  const Tensor workspace = workspace_of(query, bytes);
  raise_if_error(additive::launch_forward(params, workspace.data_ptr(), current_stream(query)));
}

void cuda_additive_backward(const Tensor& query, const Tensor& key, const Tensor& value,
                            const Tensor& v, OptionalTensor key_lengths, int64_t left,
                            int64_t right, int64_t offset, const Tensor& out, const Tensor& lse,
                            const Tensor& grad_out, OptionalTensor grad_lse,
                            OptionalTensor grad_query, OptionalTensor grad_key,
                            OptionalTensor grad_value, OptionalTensor grad_v) {
  const AdditiveShared in{query, key, value, v, key_lengths, left, right, offset};
  const DeviceGuard guard(query.get_device_index());
  const AdditiveBackwardParams params = additive_backward_params_of(
      in, out, lse, grad_out, grad_lse, grad_query, grad_key, grad_value, grad_v);
  int64_t bytes = 0;
  raise_if_error(additive::backward_workspace_bytes(params, &bytes));
  const Tensor workspace = workspace_of(query, bytes);
  raise_if_error(additive::launch_backward(params, workspace.data_ptr(), current_stream(query)));
}

}  // namespace

#define ADDITIVE_ARGUMENTS                                                                \
  "Tensor query, Tensor key, Tensor value, Tensor v, Tensor? key_lengths, int left, int " \
  "right, int offset, "

STABLE_TORCH_LIBRARY_FRAGMENT(fused_attention, m) {
  m.def("cuda_additive_forward(" ADDITIVE_ARGUMENTS "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("cuda_additive_backward(" ADDITIVE_ARGUMENTS
        "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, Tensor(a!)? grad_query, "
        "Tensor(b!)? grad_key, Tensor(c!)? grad_value, Tensor(d!)? grad_v) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fused_attention, CUDA, m) {
  m.impl("cuda_additive_forward", TORCH_BOX(&cuda_additive_forward));
  m.impl("cuda_additive_backward", TORCH_BOX(&cuda_additive_backward));
}
