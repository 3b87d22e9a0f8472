#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "work.h"

namespace fused_attention::cpu {

// Zeros in which dK and dV grow, [B, H, L, dim padded]; the heads of packed tensors lie apart too.
// Small ones stay with the thread: getting memory and its pages anew takes longer than a backward
// pass over a few tokens. Large ones come from the system as zeros, page by page as threads go.
class GradientSums {
 public:
  explicit GradientSums(BackwardParams& params) {
    const AttentionParams& p = params.forward;
    const int64_t size = p.dtype == DType::FLOAT64 ? 8 : 4;
    const int64_t key_bytes = place(params.key_sum, p, p.head_dim) * size;
    const int64_t value_bytes = place(params.value_sum, p, p.value_dim) * size;
    char* memory = zeros(key_bytes + value_bytes);
    params.key_sum.data = memory;
    params.value_sum.data = memory == nullptr ? nullptr : memory + key_bytes;
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  // Strides; how many values there are.
  static int64_t place(Operand& sum, const AttentionParams& p, int64_t dim) {
    constexpr int64_t ROW_ALIGN = 16;  // of tiles.h
    const bool packed = p.cu_seqlens_q != nullptr;
    sum.row = blocks(dim, ROW_ALIGN) * ROW_ALIGN;
    sum.head = (packed ? p.total_k : p.len_k) * sum.row;
    sum.batch = packed ? 0 : p.heads_kv * sum.head;
    return (packed ? 1 : p.batch) * p.heads_kv * sum.head;
  }

  char* zeros(int64_t bytes) {
    constexpr int64_t KEPT_BYTES = 4 << 20, LINE = 64;
    if (bytes <= KEPT_BYTES) {
      thread_local Scratch kept;
      void* memory = kept.bytes(std::max(bytes, LINE));
      return static_cast<char*>(memory == nullptr ? nullptr : std::memset(memory, 0, bytes));
    }
    own_.reset(std::calloc(bytes + LINE, 1));
    const uintptr_t at = reinterpret_cast<uintptr_t>(own_.get());
    if (at != 0) prefer_huge_pages(at, bytes + LINE);
    return at == 0 ? nullptr : reinterpret_cast<char*>((at + LINE - 1) / LINE * LINE);
  }

  // One fault for 2 MiB instead of 512; advice, which the system need not take.
  static void prefer_huge_pages(uintptr_t at, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t HUGE = 2 << 20;
    const uintptr_t begin = (at + HUGE - 1) / HUGE * HUGE, end = (at + bytes) / HUGE * HUGE;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)at, (void)bytes;
#endif
  }

  std::unique_ptr<void, Free> own_;
};

}  // namespace fused_attention::cpu
