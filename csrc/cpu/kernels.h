#pragma once

#include <cstdint>

#include "fused_attention/params.h"

// What one instruction set's file offers to launch.cpp: plain functions, one set per computed type.
namespace fused_attention::cpu {

constexpr int64_t DECODE_ROWS = 64;  // of one item at most

// A part of the keys of one key/value head, and the rows that attend to it. Rows are the queries of
// all heads of the group: row r is query r / group of head h_kv * group + r % group.
struct DecodeItem {
  int64_t b = 0, h_kv = 0;
  int64_t row_begin = 0, rows = 0;
  Band band;              // with the offset of this sequence
  int64_t first_key = 0;  // left padding ends here
  int64_t length = 0;     // keys in the cache, the new ones included
  Range keys;             // of this part; inside what any of the rows sees
};

struct KernelSet {
  int64_t (*forward_bytes)(const AttentionParams&);  // scratch of one thread
  int64_t (*backward_bytes)(const AttentionParams&);
  void (*forward)(const AttentionParams&, int64_t b, int64_t h, int64_t q_begin, void* scratch);
  void (*backward)(const BackwardParams&, int64_t b, int64_t h, int64_t q_begin, int32_t* turns,
                   void* scratch);
  void (*finish_key_row)(const BackwardParams&, int64_t b, int64_t h, int64_t row);
  int64_t (*bias_tiles)(const BackwardParams&);
  void (*bias_gradient)(const BackwardParams&, int64_t tile, void* scratch);
  int64_t (*decode_bytes)(const DecodeParams&);       // scratch of one thread
  int64_t (*decode_part_bytes)(const DecodeParams&);  // what one part leaves in the workspace
  void (*decode_append)(const DecodeParams&, int64_t b, int64_t h_kv, void* scratch);
  void (*decode_part)(const DecodeParams&, const DecodeItem&, void* part, void* scratch);
  // Writes out and lse of the item's rows from `count` parts in their order.
  void (*decode_merge)(const DecodeParams&, const DecodeItem&, const void* parts, int64_t count,
                       void* scratch);
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
