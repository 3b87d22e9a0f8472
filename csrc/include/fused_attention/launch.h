#pragma once

#include <cstdint>

#include "fused_attention/params.h"
#include "fused_attention/status.h"

namespace fused_attention::cpu {

// Runs body(context, worker) for worker = 0 .. workers - 1, possibly at once, and returns when all
// are done. The binding hands in torch's own thread pool; tests hand in a loop or threads of
// theirs.
struct ThreadPool {
  int threads = 1;
  void (*run)(void* state, int workers, void (*body)(void* context, int worker),
              void* context) = nullptr;
  void* state = nullptr;
};

// isa: "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16" or "amx_fp16"; a tier that the
// library or the machine lacks is an error.
//
// backward_follows: the backward pass computes the scores once more, and P = e^(S - lse) is most
// exact if the forward rounded them alike; without one, few queries go the way of decoding.
Status launch_forward(const AttentionParams& params, bool backward_follows, const char* isa,
                      const ThreadPool& pool);
Status launch_backward(const BackwardParams& params, const char* isa, const ThreadPool& pool);
Status launch_decode(const DecodeParams& params, const char* isa, const ThreadPool& pool);

// Bytes of workspace that launch_decode wants, which depends on the lengths.
int64_t decode_workspace_bytes(const DecodeParams& params, const char* isa);

// `flops`: what all threads together did in so many rounds of the multiplications that the kernels
// of this dtype use, in registers. Whoever times the call learns the limit of every kernel.
Status launch_peak(DType dtype, int64_t rounds, const char* isa, const ThreadPool& pool,
                   double* flops);

// Reads `bytes` bytes, in whole lines of 64, once; `found`: the bits that are set anywhere.
Status launch_read(const void* data, int64_t bytes, const ThreadPool& pool, uint64_t* found);

// Tiers that this build has and this machine can run, best first, separated by commas.
const char* available_isas();

}  // namespace fused_attention::cpu
