// The host's part of a step of decoding for the tests: what launch.cu hands to the kernels, as
// bytes.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../../csrc/cuda/decode/prepare.h"

namespace py = pybind11;
using namespace fused_attention;

namespace {

// The step as keywords; what is not given keeps its default. Pointers are addresses.
class Fields {
 public:
  explicit Fields(const py::kwargs& given) : given_(given) {}

  template <class T>
  void number(const char* name, T* field) const {
    if (given_.contains(name)) *field = given_[name].cast<T>();
  }
  template <class T>
  void pointer(const char* name, T** field) const {
    if (given_.contains(name)) *field = reinterpret_cast<T*>(given_[name].cast<uintptr_t>());
  }
  // (data, batch, head, row)
  template <class Strided>
  void strided(const char* name, Strided* field) const {
    if (!given_.contains(name)) return;
    const auto [data, batch, head, row] =
        given_[name].cast<std::tuple<uintptr_t, int64_t, int64_t, int64_t>>();
    *field = {reinterpret_cast<void*>(data), batch, head, row};
  }
  void dtype(const char* name, DType* field) const {
    if (!given_.contains(name)) return;
    const std::string dtype = given_[name].cast<std::string>();
    *field = dtype == "bfloat16"  ? DType::BFLOAT16
             : dtype == "float16" ? DType::FLOAT16
             : dtype == "float64" ? DType::FLOAT64
                                  : DType::FLOAT32;
  }

 private:
  const py::kwargs& given_;
};

void read_attention(const Fields& fields, AttentionParams* p) {
  fields.dtype("dtype", &p->dtype);
  fields.number("batch", &p->batch);
  fields.number("heads_q", &p->heads_q);
  fields.number("heads_kv", &p->heads_kv);
  fields.number("len_q", &p->len_q);
  fields.number("len_k", &p->len_k);
  fields.number("head_dim", &p->head_dim);
  fields.number("value_dim", &p->value_dim);
  fields.strided("query", &p->query);
  fields.strided("key", &p->key);
  fields.strided("value", &p->value);
  fields.strided("out", &p->out);
  fields.strided("lse", &p->lse);
  fields.number("left", &p->band.left);
  fields.number("right", &p->band.right);
  fields.number("scale", &p->scale);
  fields.number("softcap", &p->softcap);
  fields.pointer("bias", &p->bias.data);
  fields.number("dropout_threshold", &p->dropout.threshold);
  fields.pointer("alibi_slopes", &p->alibi_slopes);
  fields.number("alibi_batch", &p->alibi_batch);
  fields.pointer("sinks", &p->sinks);
}

DecodeParams read_step(const Fields& fields) {
  DecodeParams step;
  read_attention(fields, &step.attention);
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

py::tuple launch_of(const char* kernel, const cuda::decode::KernelLaunch& launch) {
  return py::make_tuple(kernel, launch.blocks, launch.threads, launch.shared_bytes);
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
