#pragma once

#include <cstdint>

#include "fused_attention/local_params.h"

// What one instruction set's file offers to launch.cpp: one set per computed type.
namespace fused_attention::cpu {

constexpr int64_t LOCAL_ROWS = 32;  // queries of one item
constexpr int64_t LOCAL_KEYS = 64;  // keys of one item of the pass over the keys

// The queries of one head in the order of their windows: both ends of the windows never decrease
// from one to the next. Behind the first `seeing` ones stand those whose windows are empty.
struct LocalOrder {
  const int32_t* rows = nullptr;
  int64_t seeing = 0;
};

struct LocalKernelSet {
  int64_t (*bytes)(const LocalParams&);  // scratch of one thread
  // Both passes over the queries take those at [begin, begin + LOCAL_ROWS) of the order.
  void (*forward)(const LocalParams&, int64_t b, int64_t h, const LocalOrder&, int64_t begin,
                  void* scratch);
  void (*backward_queries)(const LocalBackwardParams&, int64_t b, int64_t h, const LocalOrder&,
                           int64_t begin, void* scratch);
  // Keys [begin, begin + LOCAL_KEYS) of one key/value head; `orders`: of the query heads that read
  // it. Needs the delta that the pass over the queries writes.
  void (*backward_keys)(const LocalBackwardParams&, int64_t b, int64_t h_kv,
                        const LocalOrder* orders, int64_t begin, void* scratch);
};

struct LocalKernels {
  LocalKernelSet fp32, fp64;  // fp32 also serves bf16 and fp16
};

extern const LocalKernels local_portable;
#if defined(__x86_64__)
extern const LocalKernels local_avx2;
extern const LocalKernels local_avx512;
#endif

}  // namespace fused_attention::cpu
