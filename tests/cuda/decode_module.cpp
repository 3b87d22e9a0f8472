// The host's part of a step of decoding for the tests: what launch.cu hands to the kernels, as
// bytes.
#include <pybind11/pybind11.h>

#include "../../csrc/cuda/decode/prepare.h"
#include "fields.h"

namespace py = pybind11;
using namespace fused_attention;
using tests::Fields;
using tests::launch_of;

namespace {

DecodeParams read_step(const Fields& fields) {
  DecodeParams step;
  tests::read_attention(fields, &step.attention);
  fields.pointer("cache_lengths", &step.cache_lengths);
  fields.pointer("cache_batch", &step.cache_batch);
  fields.pointer("cache_starts", &step.cache_starts);
  fields.pointer("block_table", &step.block_table);
  fields.number("block_table_row", &step.block_table_row);
  fields.number("page_size", &step.page_size);
  fields.strided("new_key", &step.new_key);
  fields.strided("new_value", &step.new_value);
  fields.number("len_new", &step.len_new);
  fields.pointer("rotary_cos", &step.rotary_cos);
  fields.pointer("rotary_sin", &step.rotary_sin);
  fields.dtype("rotary_dtype", &step.rotary_dtype);
  fields.number("rotary_dim", &step.rotary_dim);
  fields.number("rotary_interleaved", &step.rotary_interleaved);
  fields.number("splits", &step.splits);
  fields.number("batch_invariant", &step.batch_invariant);
  fields.pointer("workspace", &step.workspace);
  return step;
}

// A dict of what the plan says; raises what the launch would say no with.
py::dict plan(int multiprocessors, const py::kwargs& given) {
  const cuda::decode::Plan plan = cuda::decode::plan(read_step(Fields(given)), multiprocessors);
  if (!plan.status.ok) throw py::value_error(plan.status.message);
  py::dict told;
  told["dim"] = plan.dim;
  told["splits"] = plan.arguments.splits;
  told["combined"] = plan.arguments.combined;
  told["aligned"] = plan.arguments.aligned;
  told["workspace_bytes"] = plan.workspace_bytes;
  told["arguments"] =
      py::bytes(reinterpret_cast<const char*>(&plan.arguments), sizeof(plan.arguments));
  told["launches"] =
      py::make_tuple(launch_of("append", plan.append), launch_of("decode", plan.decode),
                     launch_of("combine", plan.combine));
  return told;
}

}  // namespace

PYBIND11_MODULE(fused_attention_cuda_decode, m) { m.def("plan", &plan); }
