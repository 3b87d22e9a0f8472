#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "work.h"

namespace fused_attention::cpu {

// Strides of [B, H, L, dim padded], in which dK or dV grows; the heads of packed tensors lie apart
// too. Returns how many values there are.
inline int64_t place_sums(Operand& sum, const AttentionParams& p, int64_t dim) {
  constexpr int64_t ROW_ALIGN = 16;  // of tiles.h
  const bool packed = p.cu_seqlens_q != nullptr;
  sum.row = blocks(dim, ROW_ALIGN) * ROW_ALIGN;
  sum.head = (packed ? p.total_k : p.len_k) * sum.row;
  sum.batch = packed ? 0 : p.heads_kv * sum.head;
  return (packed ? 1 : p.batch) * p.heads_kv * sum.head;
}

inline int64_t sum_size(const AttentionParams& p) { return p.dtype == DType::FLOAT64 ? 8 : 4; }

// The sums of all heads, zeros.
// Small ones stay with the thread: getting memory and its pages anew takes longer than a backward
// pass over a few tokens. Large ones come from the system as zeros, page by page as threads go.
class GradientSums {
 public:
  explicit GradientSums(BackwardParams& params) {
    const AttentionParams& p = params.forward;
    const int64_t key_bytes = place_sums(params.key_sum, p, p.head_dim) * sum_size(p);
    const int64_t value_bytes = place_sums(params.value_sum, p, p.value_dim) * sum_size(p);
    char* memory = zeros(key_bytes + value_bytes);
    params.key_sum.data = memory;
    params.value_sum.data = memory == nullptr ? nullptr : memory + key_bytes;
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

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

// The sums of one (batch, key/value head) that a thread has for itself: behind its scratch, where
// they stay in its cache until it writes dK and dV.
class HeadSums {
 public:
  static constexpr int64_t MOST_BYTES = 1 << 20;

  // Scratch of this many bytes, rounded up to where the sums begin.
  static int64_t behind(int64_t bytes) { return blocks(bytes, 64) * 64; }

  // Of the longest sequence.
  static int64_t bytes(const AttentionParams& p) {
    Operand key, value;
    place_sums(key, p, p.head_dim);
    place_sums(value, p, p.value_dim);
    return p.len_k * (key.row + value.row) * sum_size(p);
  }

  HeadSums(const BackwardParams& params, int64_t b, char* memory) : params_(params), b_(b) {
    const AttentionParams& p = params_.forward;
    begin_ = p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[b] : 0;
    end_ = p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[b + 1] : p.len_k;
    char* behind_keys = place(params_.key_sum, p.head_dim, memory);
    char* end = place(params_.value_sum, p.value_dim, behind_keys);
    std::memset(memory, 0, end - memory);
  }

  const BackwardParams& params() const { return params_; }

  // dK and dV of the head by its kernels.
  template <class FinishKeyRows>
  void finish(int64_t h_kv, const FinishKeyRows& finish_key_rows) const {
    finish_key_rows(params_, b_, h_kv, begin_, end_);
  }

 private:
  // The kernels count a packed tensor's rows from its first, so its row 0 would be before `memory`.
  char* place(Operand& sum, int64_t dim, char* memory) {
    const AttentionParams& p = params_.forward;
    place_sums(sum, p, dim);
    sum.head = sum.batch = 0;
    const int64_t row_bytes = sum.row * sum_size(p);
    sum.data = reinterpret_cast<void*>(reinterpret_cast<intptr_t>(memory) - begin_ * row_bytes);
    return memory + (end_ - begin_) * row_bytes;
  }

  BackwardParams params_;
  int64_t b_, begin_, end_;
};

}  // namespace fused_attention::cpu
