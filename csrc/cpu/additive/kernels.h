#pragma once

#include <cstdint>

#include "fused_attention/additive_params.h"

// What one instruction set's file offers to launch.cpp.
namespace fused_attention::cpu {

struct AdditiveKernelSet {
  int64_t (*forward_bytes)(const AdditiveParams&);  // scratch of one thread
  int64_t (*backward_bytes)(const AdditiveBackwardParams&);
  void (*forward)(const AdditiveParams&, int64_t b, int64_t h, int64_t q_begin, void* scratch);
  // `turns`: see Turnstile. v_part [head_dim] receives this block's share of grad_v.
  void (*backward)(const AdditiveBackwardParams&, int64_t b, int64_t h, int64_t q_begin,
                   int32_t* turns, void* v_part, void* scratch);
  void (*finish_key_row)(const AdditiveBackwardParams&, int64_t b, int64_t h, int64_t row,
                         void* scratch);
};

struct AdditiveKernels {
  const char* name;
  bool (*supported)();  // can this machine run them?
  int64_t block_q, block_kv;
  AdditiveKernelSet fp32, fp64;  // fp32 also serves bf16 and fp16
};

extern const AdditiveKernels additive_portable;
#if defined(__x86_64__)
extern const AdditiveKernels additive_avx2;
extern const AdditiveKernels additive_avx512;
#endif

}  // namespace fused_attention::cpu
