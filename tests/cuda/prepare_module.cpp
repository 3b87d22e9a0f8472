// The host's part of a launch for the tests: what launch.cu hands to a kernel, as bytes.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../../csrc/cuda/sm80/prepare.h"

namespace py = pybind11;
using namespace fused_attention;

namespace {

// A pointer of the parameter structs as a Python integer.
template <class Struct, class Pointer>
auto getter(Pointer Struct::* member) {
  return [member](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*member); };
}

template <class Struct, class Pointer>
auto setter(Pointer Struct::* member) {
  return [member](Struct& s, uintptr_t value) { s.*member = reinterpret_cast<Pointer>(value); };
}

template <class Struct, class Class, class Pointer>
void def_pointer(Class& type, const char* name, Pointer Struct::* member) {
  type.def_property(name, getter(member), setter(member));
}

template <class Struct>
void def_strides(py::class_<Struct>& type) {
  type.def(py::init<>());
  def_pointer<Struct>(type, "data", &Struct::data);
  type.def_readwrite("batch", &Struct::batch);
  type.def_readwrite("head", &Struct::head);
  type.def_readwrite("row", &Struct::row);
}

py::object launch_of(const cuda::sm80::KernelLaunch& launch) {
  return py::make_tuple(launch.blocks, launch.threads, launch.shared_bytes);
}

template <class Arguments>
py::bytes bytes_of(const Arguments& arguments) {
  return py::bytes(reinterpret_cast<const char*>(&arguments), sizeof(arguments));
}

void def_params(py::module_& m) {
  py::enum_<DType>(m, "DType")
      .value("FLOAT32", DType::FLOAT32)
      .value("FLOAT64", DType::FLOAT64)
      .value("BFLOAT16", DType::BFLOAT16)
      .value("FLOAT16", DType::FLOAT16);
  py::class_<Operand> operand(m, "Operand");
  def_strides(operand);
  py::class_<RowVector> row_vector(m, "RowVector");
  def_strides(row_vector);
  py::class_<Band>(m, "Band").def(py::init<int64_t, int64_t, int64_t>());
  py::class_<Dropout>(m, "Dropout")
      .def(py::init([](uint32_t threshold, uint64_t seed, uint32_t offset, double keep_scale) {
        const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
        return Dropout{threshold, {low, high}, offset, keep_scale};
      }));
  py::class_<Bias> bias(m, "Bias");
  bias.def(py::init<>());
  def_pointer<Bias>(bias, "data", &Bias::data);

  using P = AttentionParams;
  py::class_<P> params(m, "AttentionParams");
  params.def(py::init<>())
      .def_readwrite("dtype", &P::dtype)
      .def_readwrite("batch", &P::batch)
      .def_readwrite("heads_q", &P::heads_q)
      .def_readwrite("heads_kv", &P::heads_kv)
      .def_readwrite("len_q", &P::len_q)
      .def_readwrite("len_k", &P::len_k)
      .def_readwrite("total_q", &P::total_q)
      .def_readwrite("total_k", &P::total_k)
      .def_readwrite("head_dim", &P::head_dim)
      .def_readwrite("value_dim", &P::value_dim)
      .def_readwrite("query", &P::query)
      .def_readwrite("key", &P::key)
      .def_readwrite("value", &P::value)
      .def_readwrite("out", &P::out)
      .def_readwrite("lse", &P::lse)
      .def_readwrite("band", &P::band)
      .def_readwrite("scale", &P::scale)
      .def_readwrite("softcap", &P::softcap)
      .def_readwrite("bias", &P::bias)
      .def_readwrite("alibi_batch", &P::alibi_batch)
      .def_readwrite("dropout", &P::dropout)
      .def_readwrite("rows_share_position", &P::rows_share_position);
  def_pointer<P>(params, "kv_lengths", &P::kv_lengths);
  def_pointer<P>(params, "cu_seqlens_q", &P::cu_seqlens_q);
  def_pointer<P>(params, "cu_seqlens_k", &P::cu_seqlens_k);
  def_pointer<P>(params, "band_offsets", &P::band_offsets);
  def_pointer<P>(params, "alibi_slopes", &P::alibi_slopes);
  def_pointer<P>(params, "sinks", &P::sinks);

  using B = BackwardParams;
  py::class_<B>(m, "BackwardParams")
      .def(py::init<>())
      .def_readwrite("forward", &B::forward)
      .def_readwrite("grad_out", &B::grad_out)
      .def_readwrite("grad_query", &B::grad_query)
      .def_readwrite("grad_key", &B::grad_key)
      .def_readwrite("grad_value", &B::grad_value)
      .def_readwrite("grad_lse", &B::grad_lse)
      .def_readwrite("delta", &B::delta);
}

void def_plans(py::module_& m) {
  namespace sm80 = cuda::sm80;
  // Both raise what the launch would say no with.
  m.def("plan_forward", [](const AttentionParams& params) {
    const sm80::ForwardPlan plan = sm80::plan_forward(params);
    if (!plan.status.ok) throw py::value_error(plan.status.message);
    return py::make_tuple(plan.dim, launch_of(plan.forward), bytes_of(plan.arguments));
  });
  m.def("plan_backward", [](const BackwardParams& params) {
    const sm80::BackwardPlan plan = sm80::plan_backward(params);
    if (!plan.status.ok) throw py::value_error(plan.status.message);
    return py::make_tuple(plan.dim, launch_of(plan.delta), launch_of(plan.query_gradient),
                          launch_of(plan.key_gradient), bytes_of(plan.arguments));
  });
}

void def_order(py::module_& m) {
  using cuda::TileOrder;
  py::class_<TileOrder>(m, "TileOrder")
      .def(py::init([](uint32_t blocks, uint32_t heads, uint32_t section, bool last_first) {
        return TileOrder{blocks, heads, section, last_first};
      }))
      .def("__call__", [](const TileOrder& order, uint32_t item) {
        const cuda::TileIndex index = order(item);
        return py::make_tuple(index.block, index.head);
      });
  m.def("heads_side_by_side", &cuda::heads_side_by_side);
}

}  // namespace

PYBIND11_MODULE(fused_attention_cuda_prepare, m) {
  def_params(m);
  def_plans(m);
  def_order(m);
}
