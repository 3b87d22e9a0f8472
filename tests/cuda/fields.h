// Parameter structs from Python keywords, for the tests. Pointers are addresses of an emulator's
// memory.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "../../csrc/cuda/common/launch_plan.h"
#include "fused_attention/params.h"

namespace fused_attention::tests {

namespace py = pybind11;

// (name, blocks, threads, bytes of shared memory)
inline py::tuple launch_of(const char* kernel, const cuda::KernelLaunch& launch) {
  return py::make_tuple(kernel, launch.blocks, launch.threads, launch.shared_bytes);
}

// What is not given keeps its default.
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

inline void read_attention(const Fields& fields, AttentionParams* p) {
  fields.dtype("dtype", &p->dtype);
  fields.number("batch", &p->batch);
  fields.number("heads_q", &p->heads_q);
  fields.number("heads_kv", &p->heads_kv);
  fields.number("len_q", &p->len_q);
  fields.number("len_k", &p->len_k);
  fields.number("total_q", &p->total_q);
  fields.number("total_k", &p->total_k);
  fields.number("head_dim", &p->head_dim);
  fields.number("value_dim", &p->value_dim);
  fields.strided("query", &p->query);
  fields.strided("key", &p->key);
  fields.strided("value", &p->value);
  fields.strided("out", &p->out);
  fields.strided("lse", &p->lse);
  fields.pointer("kv_lengths", &p->kv_lengths);
  fields.pointer("cu_seqlens_q", &p->cu_seqlens_q);
  fields.pointer("cu_seqlens_k", &p->cu_seqlens_k);
  fields.pointer("band_offsets", &p->band_offsets);
  fields.number("left", &p->band.left);
  fields.number("right", &p->band.right);
  fields.number("offset", &p->band.offset);
  fields.number("scale", &p->scale);
  fields.number("softcap", &p->softcap);
  fields.pointer("bias", &p->bias.data);
  fields.pointer("alibi_slopes", &p->alibi_slopes);
  fields.number("alibi_batch", &p->alibi_batch);
  fields.pointer("sinks", &p->sinks);
  fields.number("dropout_threshold", &p->dropout.threshold);
  fields.pointer("dropout_state", &p->dropout.state);
  fields.number("dropout_keep_scale", &p->dropout.keep_scale);
}

inline void read_backward(const Fields& fields, BackwardParams* p) {
  read_attention(fields, &p->forward);
  fields.strided("grad_out", &p->grad_out);
  fields.strided("grad_query", &p->grad_query);
  fields.strided("grad_key", &p->grad_key);
  fields.strided("grad_value", &p->grad_value);
  fields.strided("grad_lse", &p->grad_lse);
  fields.strided("delta", &p->delta);
}

}  // namespace fused_attention::tests
