#pragma once

#include <cstdint>

#include "fused_attention/params.h"

// What one instruction set's file offers to launch.cpp: plain functions, one set per computed type.
namespace fused_attention::cpu {

struct KernelSet {
  int64_t (*forward_bytes)(const AttentionParams&);  // scratch of one thread
  int64_t (*backward_bytes)(const AttentionParams&);
  void (*forward)(const AttentionParams&, int64_t b, int64_t h, int64_t q_begin, void* scratch);
  void (*backward)(const BackwardParams&, int64_t b, int64_t h, int64_t q_begin, int32_t* turns,
                   void* scratch);
  void (*finish_key_row)(const BackwardParams&, int64_t b, int64_t h, int64_t row);
  int64_t (*bias_tiles)(const BackwardParams&);
  void (*bias_gradient)(const BackwardParams&, int64_t tile, void* scratch);
};

struct Kernels {
  const char* name;
  bool (*supported)();  // can this machine run them?
  int64_t block_q, block_kv;
  KernelSet fp32, fp64;  // fp32 also serves bf16 and fp16, converted tile by tile
};

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

void yield_thread();

}  // namespace fused_attention::cpu
