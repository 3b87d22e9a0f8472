// The host's part of the launches of csrc/cuda/additive for the tests: what launch.cu hands to the
// kernels, as bytes.
#include <pybind11/pybind11.h>

#include "../../csrc/cuda/additive/prepare.h"
#include "fields.h"

namespace py = pybind11;
namespace additive = fused_attention::cuda::additive;
using fused_attention::AdditiveBackwardParams;
using fused_attention::AdditiveParams;
using fused_attention::tests::Fields;
using fused_attention::tests::launch_of;

namespace {

AdditiveParams read_forward(const Fields& fields) {
  AdditiveParams p;
  read_attention(fields, &p.attention);
  fields.pointer("v", &p.v);
  return p;
}

AdditiveBackwardParams read_additive_backward(const Fields& fields) {
  AdditiveBackwardParams p;
  read_backward(fields, &p.attention);
  fields.pointer("v", &p.v);
  fields.pointer("grad_v", &p.grad_v);
  return p;
}

// A dict of what a plan says; raises what the launch would say no with.
template <class Plan>
py::dict told(const Plan& plan, const py::tuple& launches) {
  if (!plan.status.ok) throw py::value_error(plan.status.message);
  const auto& args = plan.arguments;
  py::dict told;
  told["aligned"] = args.aligned;
  told["workspace_bytes"] = plan.workspace_bytes;
  told["arguments"] = py::bytes(reinterpret_cast<const char*>(&args), sizeof(args));
  told["launches"] = launches;
  return told;
}

py::dict plan_forward(uintptr_t workspace, const py::kwargs& given) {
  const auto plan =
      additive::plan_forward(read_forward(Fields(given)), reinterpret_cast<void*>(workspace));
  return told(plan, py::make_tuple(launch_of("forward", plan.forward)));
}

py::dict plan_backward(uintptr_t workspace, const py::kwargs& given) {
  const auto plan = additive::plan_backward(read_additive_backward(Fields(given)),
                                            reinterpret_cast<void*>(workspace));
  return told(plan, py::make_tuple(launch_of("delta", plan.delta),
                                   launch_of("query_gradient", plan.query_gradient),
                                   launch_of("v_gradient", plan.v_gradient),
                                   launch_of("key_gradient", plan.key_gradient)));
}

}  // namespace

PYBIND11_MODULE(fused_attention_cuda_additive, m) {
  m.def("plan_forward", &plan_forward);
  m.def("plan_backward", &plan_backward);
}
