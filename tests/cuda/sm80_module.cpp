// The host's part of the launches of csrc/cuda/sm80 for the tests: what launch.cu hands to the
// kernels, as bytes.
#include <pybind11/stl.h>

#include <iterator>
#include <vector>

#include "../../csrc/cuda/sm80/prepare.h"
#include "fields.h"

namespace py = pybind11;
namespace sm80 = fused_attention::cuda::sm80;
using fused_attention::Status;
using fused_attention::cuda::TileOrder;
using fused_attention::tests::Fields;
using fused_attention::tests::launch_of;

namespace {

void raise_if_error(const Status& status) {
  if (!status.ok) throw py::value_error(status.message);
}

template <class Arguments>
py::dict told(int dim, const Arguments& arguments, const py::tuple& launches) {
  py::dict plan;
  plan["dim"] = dim;
  plan["aligned_rows"] = arguments.aligned_rows;
  plan["arguments"] = py::bytes(reinterpret_cast<const char*>(&arguments), sizeof(arguments));
  plan["launches"] = launches;
  return plan;
}

py::dict plan_forward(const py::kwargs& given) {
  fused_attention::AttentionParams params;
  read_attention(Fields(given), &params);
  const sm80::ForwardPlan plan = sm80::plan_forward(params);
  raise_if_error(plan.status);
  return told(plan.dim, plan.arguments, py::make_tuple(launch_of("forward", plan.forward)));
}

py::dict plan_backward(const py::kwargs& given) {
  fused_attention::BackwardParams params;
  read_backward(Fields(given), &params);
  const sm80::BackwardPlan plan = sm80::plan_backward(params);
  raise_if_error(plan.status);
  return told(
      plan.dim, plan.arguments,
      py::make_tuple(launch_of("delta", plan.delta), launch_of("key_gradient", plan.key_gradient),
                     launch_of("query_gradient", plan.query_gradient)));
}

// [(block, head)] in the order in which thread blocks start.
py::list tile_order(uint32_t blocks, uint32_t heads, uint32_t section, bool last_first) {
  const TileOrder order{blocks, heads, section, last_first};
  py::list tiles;
  for (uint32_t item = 0; item < blocks * heads; ++item) {
    tiles.append(py::make_tuple(order(item).block, order(item).head));
  }
  return tiles;
}

}  // namespace

PYBIND11_MODULE(fused_attention_cuda_sm80, m) {
  m.def("plan_forward", &plan_forward);
  m.def("plan_backward", &plan_backward);
  m.def("tile_order", &tile_order);
  m.def("heads_side_by_side", &fused_attention::cuda::heads_side_by_side);
  m.attr("DIMS") = py::cast(std::vector<int>(std::begin(sm80::DIMS), std::end(sm80::DIMS)));
}
