#pragma once

#include <cstdint>

#include "fused_attention/params.h"
#include "packed_heads.h"

// What one instruction set's file offers to launch.cpp: plain functions, one set per computed type.
namespace fused_attention::cpu {

struct KernelSet {
  int64_t (*forward_bytes)(const AttentionParams&);  // scratch of one thread
  int64_t (*backward_bytes)(const AttentionParams&);
  void (*forward)(const AttentionParams&, int64_t b, int64_t h, int64_t q_begin, void* scratch);
  void (*backward)(const BackwardParams&, int64_t b, int64_t h, int64_t q_begin, int32_t* turns,
                   void* scratch);
  void (*finish_key_rows)(const BackwardParams&, int64_t b, int64_t h, int64_t begin, int64_t end);
  int64_t (*bias_tiles)(const BackwardParams&);
  void (*bias_gradient)(const BackwardParams&, int64_t tile, void* scratch);
  double (*peak)(int64_t rounds);  // see peak.h
};

// One dtype on tiles. Whoever launches them gives them memory for the packed keys of each head.
struct TileKernels {
  bool (*serves)(const AttentionParams&);  // else KernelSet does
  int64_t (*forward_granule_bytes)(const AttentionParams&);
  int64_t (*backward_granule_bytes)(const AttentionParams&);
  int64_t (*forward_bytes)(const AttentionParams&);  // scratch of one thread
  int64_t (*backward_bytes)(const AttentionParams&);
  void (*forward)(const AttentionParams&, int64_t b, int64_t h, int64_t q_begin, int64_t q_end,
                  const PackedHead&, void* scratch);
  void (*backward)(const BackwardParams&, int64_t b, int64_t h, int64_t q_begin, int32_t* turns,
                   const PackedHead&, void* scratch);
  void (*finish_key_rows)(const BackwardParams&, int64_t b, int64_t h, int64_t begin, int64_t end);
  double (*peak)(int64_t rounds);  // see peak.h
};

struct Kernels {
  const char* name;
  bool (*supported)();  // can this machine run them?
  int64_t block_q, block_kv;
  // fp32 also serves fp16, converted tile by tile, and bf16 where there are no products for it.
  const KernelSet *fp32, *fp64, *bf16;
  const TileKernels *bf16_tiles = nullptr, *fp16_tiles = nullptr;
};

extern const KernelSet avx512_fp32, avx512_fp64;  // shared by the tiers above AVX-512

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
extern const Kernels kernels_amx_bf16;
extern const Kernels kernels_amx_fp16;
#endif

void yield_thread();

}  // namespace fused_attention::cpu
