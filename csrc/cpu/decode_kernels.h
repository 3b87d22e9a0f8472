#pragma once

#include <cstdint>

#include "fused_attention/params.h"

// What one instruction set's file offers to decode_launch.cpp.
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
  int64_t seen_to = 0;    // end of what any of the rows sees, in later parts
};

struct DecodeKernelSet {
  int64_t (*bytes)(const DecodeParams&);       // scratch of one thread
  int64_t (*part_bytes)(const DecodeParams&);  // what one part leaves in the workspace
  void (*append)(const DecodeParams&, int64_t b, int64_t h_kv, void* scratch);
  void (*part)(const DecodeParams&, const DecodeItem&, void* part, void* scratch);
  // Writes out and lse of the item's rows from `count` parts in their order.
  void (*merge)(const DecodeParams&, const DecodeItem&, const void* parts, int64_t count,
                void* scratch);
};

struct DecodeKernels {
  const char* name;
  bool (*supported)();         // can this machine run them?
  DecodeKernelSet fp32, fp64;  // fp32 also serves bf16 and fp16
};

extern const DecodeKernels decode_portable;
#if defined(__x86_64__)
extern const DecodeKernels decode_avx2;
extern const DecodeKernels decode_avx512;
extern const DecodeKernels decode_avx512_bf16;
#endif

}  // namespace fused_attention::cpu
