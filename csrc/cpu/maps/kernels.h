#pragma once

#include <cstdint>

#include "fused_attention/maps_params.h"

// What one instruction set's file offers to maps/launch.cpp.
namespace fused_attention::cpu {

// Chosen queries that follow each other in one sequence: rows [first, first + count) of `weights`.
// A group of runs of one sequence, of no more rows than a block, is worked on together; their rows
// of `weights` follow each other too. With a bias, which is read by whole blocks, a run is alone.
struct RowRun {
  int64_t b = 0, q_begin = 0;  // inside the sequence; b is 0 for each row of a dense batch
  int64_t count = 0, first = 0;
};

// `n` counts the chosen heads.
struct MapsKernelSet {
  int64_t (*bytes)(const AttentionParams&);  // scratch of one thread
  // Entropy, argmax and the highest weights of one block of queries.
  void (*rows)(const MapsParams&, int64_t b, int64_t n, int64_t q_begin, void* scratch);
  // What the keys of one block receive from all queries.
  void (*columns)(const MapsParams&, int64_t b, int64_t n, int64_t key_block, void* scratch);
  void (*weights)(const MapsParams&, const RowRun* runs, int64_t count, int64_t b, int64_t n,
                  void* scratch);
};

struct MapsKernels {
  int64_t block_q, block_kv;
  const MapsKernelSet *fp32, *fp64;  // fp32 also serves bf16 and fp16
};

extern const MapsKernels maps_portable;
#if defined(__x86_64__)
extern const MapsKernels maps_avx2;
extern const MapsKernels maps_avx512;
#endif

}  // namespace fused_attention::cpu
